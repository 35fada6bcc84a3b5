"""The model `hybrid_jax` of lm-eval, EleutherAI's evaluation harness (see `hybrid_jax.lm_eval`)."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import warning_once
from tqdm import tqdm

from hybrid_jax.errors import UserError, check_settings
from hybrid_jax.eval.score import score, tokens_behind
from hybrid_jax.generation import driver, generator
from hybrid_jax.generation.requests import Request
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.command_line import step_of
from hybrid_jax.runtime.decode import from_values, overridden
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained
from hybrid_jax.training.likelihood import is_exact

_AT_ONCE = 128  # texts that are scored between two steps of the progress bar
_LONGEST = 256  # tokens of an answer where the task names no number, as for lm-eval's own models
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Settings of the model, from `--model_args` and `--batch_size` of lm-eval.

    Attributes:
      workdir: folder of the trained run.
      step: of the checkpoint; "best" on validation text, None for the newest.
      draws: of noise for each text; they have no effect where scores are exact.
      seed: of draws and answers.
      rule: that answers, such as "ancestral:temperature=0.7".
      batch_size: answers generated at a time, which do not depend on it.
    """

    workdir: str
    step: str | None = None
    draws: int = 64
    seed: int = 0
    rule: str = "greedy"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_settings(self, "model_args.", draws=2, batch_size=1)
        if self.step not in (None, "best") and not str(self.step).isdecimal():
            raise UserError(f"model_args.step={self.step!r} is neither a number nor best.")


@register_model("hybrid_jax")
class Harness(LM):  # type: ignore[misc]
    """A trained run as lm-eval asks it.

    Log-likelihoods are minus the bounds of `eval.score`: lower bounds, exact for autoregression. A
    context loses its beginning where it does not fit the model's L positions with what follows it.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        given = {name: str(value) for name, value in arguments.items()}
        if given.get("device") == "cuda:0":  # as lm-eval says where it was told of none
            del given["device"]
        if given.get("batch_size", "").startswith("auto"):
            del given["batch_size"]
        own = from_values(Arguments, overridden(Arguments, {}, given, "model_args"), "model_args")
        self._own, step = own, None if own.step is None else step_of(own.step)
        mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
        self._model = model = pretrained.load(own.workdir, step=step, mesh=mesh)
        self._length, self._tokenizer = model.spec.schedule.length, model.tokenizer
        # An answer ends with its document.
        self._writer = generator.build(model, SamplingConfig.parse(own.rule, eos="stop"))
        self._greedy = None  # which fills MASK, if the noise has one
        if model.spec.kernel.masks:
            self._greedy = generator.build(model, SamplingConfig.parse("greedy", eos="stop"))

    def get_model_info(self) -> dict[str, Any]:
        """The entry of the model in the results of lm-eval."""
        exact = is_exact(self._model.spec, self._model.experiment.bound(self._tokenizer.vocab_size))
        own = {**dataclasses.asdict(self._own), "step": self._model.step, "exact": exact}
        return {"hybrid_jax": own}

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each (context, continuation), a bound on log p, and whether the rule `greedy` writes
        just this; not, where it is longer than the model's L tokens, or under uniform noise."""
        pairs = [self._fitting(*request.args) for request in requests]
        bounds, wanted = self._bounds(pairs), []
        for prompt, text in pairs:
            ids, given = tokens_behind(self._tokenizer, prompt, text)
            wanted.append((tuple(ids[:given].tolist()), tuple(ids.tolist())))
        found = {}
        if self._greedy is not None:
            asked = {  # once for choices of one length
                (start, len(whole)): Request(prompt="", ids=list(start), stop=len(whole))
                for start, whole in wanted
                if len(start) < len(whole) <= self._length
            }
            texts = driver.run(
                self._greedy, list(asked.values()), seed=0, batch_size=self._own.batch_size
            )
            found = {key: text.tokens for key, text in zip(asked, texts, strict=True)}
        greedy = [found.get((start, len(whole)), start) == whole for start, whole in wanted]
        return list(zip(bounds, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """For each (text,), a bound on log p, in pieces of L tokens."""
        return self._bounds([("", *request.args) for request in requests])

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """For each (context, settings), what comes behind the context, up to the first of the
        strings `until`; of the other settings, only `max_gen_toks` has an effect."""
        asked, ends = [], []
        for context, settings in (request.args for request in requests):
            until, most = self._until(settings)
            ids = self._tokenizer.encode(context).tolist()
            cut = max(0, len(ids) + most - self._length)
            self._say_if(cut)
            asked.append(Request(prompt=context, ids=ids[cut:], stop=len(ids) - cut + most))
            ends.append(until)
        with tqdm(total=len(asked), desc="Answers") as bar:
            texts = driver.run(
                self._writer, asked, seed=self._own.seed, batch_size=self._own.batch_size,
                on_round=lambda now: bar.update(len(now.texts)),
            )  # fmt: skip
        return [
            postprocess_generated_text(
                self._tokenizer.decode(text.tokens[len(request.ids) :]), until, None
            )
            for text, request, until in zip(texts, asked, ends, strict=True)
        ]

    def _until(self, settings: Mapping[str, Any]) -> tuple[list[str], int]:
        """The strings that end an answer, and its most tokens, from the settings of a task."""
        known = dict(normalize_gen_kwargs(settings, min(_LONGEST, self._length // 2)))
        until, most = [end for end in known.pop("until") if end], known.pop("max_gen_toks")
        if not 0 < most < self._length:
            raise UserError(
                f"The task asks for answers of {most} tokens, but the model writes {self._length} "
                "in all: set --gen_kwargs max_gen_toks=N."
            )
        if known["do_sample"] and self._own.rule == "greedy":
            raise UserError(
                "The task asks for sampling: name the rule that does it in --model_args, such as "
                "rule=ancestral:temperature=0.7, or set --gen_kwargs do_sample=False."
            )
        if void := ", ".join(sorted(name for name, value in known.items() if value)):
            warning_once(_LOG, f"The rule {self._own.rule} answers, without the task's {void}.")
        return until, most

    def _fitting(self, context: str, text: str) -> tuple[str, str]:
        """A context and what is scored behind it: the text, and white space between them, with
        which tokens of words begin (so do lm-eval's own models)."""
        kept = context.rstrip()
        text, ids, cut = context[len(kept) :] + text, self._tokenizer.encode(kept), 0
        while cut < len(ids):
            excess = len(tokens_behind(self._tokenizer, kept, text)[0]) - self._length
            if excess <= 0:
                break
            cut += excess
            kept = self._tokenizer.decode(ids[cut:]).lstrip("\ufffd")  # of half a character
        self._say_if(cut)
        return kept, text

    def _say_if(self, cut: int) -> None:
        if cut:
            warning_once(
                _LOG, f"Contexts are cut on the left to the model's {self._length} tokens."
            )

    def _bounds(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Bounds on log p of texts behind prompts; 0 for texts without a token."""
        bounds = np.zeros(len(pairs))
        encoded = (tokens_behind(self._tokenizer, *pair) for pair in pairs)
        some = [number for number, (ids, given) in enumerate(encoded) if len(ids) > given]
        for first in tqdm(range(0, len(some), _AT_ONCE), desc="Scores"):
            part = some[first : first + _AT_ONCE]
            prompts, texts = zip(*(pairs[number] for number in part), strict=True)
            draws, seed = self._own.draws, self._own.seed
            found = score(self._model, texts, prompt=prompts, draws=draws, seed=seed)
            bounds[part] = [-each.nll for each in found]
        return list(bounds.tolist())
