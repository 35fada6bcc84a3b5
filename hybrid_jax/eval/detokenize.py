"""Detokenisation of corpora that were published as separate words.

Zero-shot perplexities of subword models are usually given on detokenised text, and differ by whole
points with the substitutions. These are the ones that the papers on masked diffusion share (SEDD,
MDLM, BD3-LM, HDLM); each set has a name, which is stored with every number.
"""

import re
from collections.abc import Callable

Substitutions = tuple[tuple[str, str], ...]  # regular expressions and replacements, in order

_WIKITEXT: Substitutions = (
    (r"s '", "s'"), (r" @([-,.])@ ", r"\1"), (r" ([:;.!?,]) ", r"\1 "),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"), (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"), (r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="),
    (r" ° ", "°"), (r" \n", "\n"), (r"\n ", "\n"), (r" N ", " 1 "), (r" 's", "'s"),
)  # fmt: skip
_LM1B: Substitutions = (
    (r"http : / / ", "http://"), (r"https : / / ", "https://"), (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1."), (r" \? ", "? "), (r" \?$", "?"),
    (r" ! ", "! "), (r" !$", "!"), (r" , ", ", "), (r" : ", ": "), (r" ; ", "; "), (r" / ", "/"),
    (r"\" ([^\"]+) \"", r'"\1"'), (r"' ([^']+) '", r"'\1'"), (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"), (r"\$ ", "$"), (r"£ ", "£"),
)  # fmt: skip
_PTB: Substitutions = (
    (r" 's", "'s"), (r"s ' ", "s' "), (r" n't", "n't"), (r" \n ", "\n"), (r"\\/", "/"),
    (r" N(?= )", " 1"), (r"\$ 1", "$1"), (r"# 1", "#1"), (r"<unk>", "?"),
)  # fmt: skip
_LAMBADA: Substitutions = ((r"[“”]", '"'), (r"^\s*", "\n"), (r"\s+$", ""))

_SUBSTITUTIONS: dict[str, Substitutions] = {
    "none": (),
    "wikitext": _WIKITEXT,
    "lm1b": _LM1B,
    "ptb": _PTB,
    "lambada": _LAMBADA,
    "scientific_papers": _WIKITEXT + _LM1B,
}
NAMES = tuple(_SUBSTITUTIONS)


def detokenizer(name: str) -> Callable[[str], str]:
    """The function of one of `NAMES`. Raises KeyError for another name."""
    substitutions = [(re.compile(pattern), new) for pattern, new in _SUBSTITUTIONS[name]]

    def detokenize(text: str) -> str:
        for pattern, new in substitutions:
            text = pattern.sub(new, text)
        return text

    return detokenize
