"""Undoes the word splitting of corpora that were published as separated words.

Zero-shot perplexities of subword models are usually given on text put together again, and differ by
whole points with the way it is done. These are the rules that the papers on masked diffusion share
(SEDD, MDLM, BD3-LM, HDLM); each has a name, which is stored with every number.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Rules = tuple[tuple[str, str], ...]  # regular expressions and what takes their place, in order

_WIKITEXT: Rules = (
    (r"s '", "s'"),
    (r" @([-,.])@ ", r"\1"),
    (r" ([:;.!?,]) ", r"\1 "),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
_LM1B: Rules = (
    (r"http : / / ", "http://"),
    (r"https : / / ", "https://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    (r" , ", ", "),
    (r" : ", ": "),
    (r" ; ", "; "),
    (r" / ", "/"),
    (r"\" ([^\"]+) \"", r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"\$ ", "$"),
    (r"£ ", "£"),
)
_PTB: Rules = (
    (r" 's", "'s"),
    (r"s ' ", "s' "),
    (r" n't", "n't"),
    (r" \n ", "\n"),
    (r"\\/", "/"),
    (r" N(?= )", " 1"),
    (r"\$ 1", "$1"),
    (r"# 1", "#1"),
    (r"<unk>", "?"),
)
_LAMBADA: Rules = ((r"[“”]", '"'), (r"^\s*", "\n"), (r"\s+$", ""))

_RULES: dict[str, Rules] = {
    "none": (),
    "wikitext": _WIKITEXT,
    "lm1b": _LM1B,
    "ptb": _PTB,
    "lambada": _LAMBADA,
    "scientific_papers": _WIKITEXT + _LM1B,
}
NAMES = tuple(_RULES)


def detokenizer(name: str) -> Callable[[str], str]:
    """The function of one of `NAMES`. Raises KeyError for another name."""
    rules = [(re.compile(pattern), new) for pattern, new in _RULES[name]]

    def detokenize(text: str) -> str:
        for pattern, new in rules:
            text = pattern.sub(new, text)
        return text

    return detokenize
