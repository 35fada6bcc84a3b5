"""A trained model as one object: text out, scores in."""

import dataclasses
from collections.abc import Sequence

from hybrid_jax.errors import UserError
from hybrid_jax.eval import datasets, perplexity
from hybrid_jax.eval import score as scores
from hybrid_jax.eval.score import Score
from hybrid_jax.generation import driver, generator, requests
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.sampling.update_rule import Rule
from hybrid_jax.training.likelihood import BoundEstimate
from hybrid_jax.training.pretrained import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Pretrained):
    """A trained model: what `load` gives.

    >>> import hybrid_jax as hj
    >>> model = hj.load(workdir)
    >>> texts = model.generate(["1 plus 1"], length=12, rule=hj.rules.Ancestral(), seed=0)
    >>> len(texts), texts[0].startswith("1 plus 1")
    (1, True)
    """

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        *,
        length: int | None = None,
        rule: Rule | str | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Generates one text for each prompt.

        A text depends on the seed, its place among the prompts and its prompt, on nothing else; it
        is the one that `python -m hybrid_jax.generate` writes.

        Args:
          prompts: beginnings of texts, "" for texts from nothing.
          length: tokens of each text, the prompt's included; None for the model's L positions.
          rule: an update rule of `hybrid_jax.rules`, its name with settings such as
            "acs:eta=0.25", or None for the one that the run was configured with.
          seed: of the texts.
          batch_size: texts at a time; the texts do not depend on it.

        Returns:
          the texts, prompts included.

        Raises:
          UserError: if a prompt is no text or does not fit, the rule is none or does not go with
            the model, or a number is out of range.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = self.experiment.sampling
        if isinstance(rule, str):
            sampling, rule = SamplingConfig.parse(rule, eos=sampling.eos), None
        if not isinstance(rule, Rule | None):
            raise UserError(
                "rule must be an update rule such as rules.ACS(eta=0.25), the name of one or None, "
                f"but is {rule!r}."
            )
        own = generator.build(self, sampling, rule=rule)
        stop = self.spec.schedule.length if length is None else length
        asked = [requests.beginning(text, self.tokenizer, stop=stop) for text in given]
        texts = driver.run(own, asked, seed=seed, batch_size=batch_size)
        return [text.text for text in texts]

    def score(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | Sequence[str] = "",
        draws: int = 16,
        seed: int = 0,
    ) -> list[Score]:
        """Bounds −log p of texts, in nats and bits per byte, with standard errors.

        >>> (score,) = model.score("1 plus 1 makes 2")
        >>> score.tokens, score.bytes, score.nll > 0
        (16, 16, True)
        >>> good, bad = model.score(["makes 2", "makes 7"], prompt="1 plus 1 ")
        >>> good.tokens, len(good.draws)
        (7, 16)

        Arguments and errors are those of `hybrid_jax.eval.score.score`.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        return scores.score(self, given, prompt=prompt, draws=draws, seed=seed)

    def perplexity(
        self,
        dataset: str = "valid",
        *,
        likelihood: str | None = None,
        records: int = 0,
        draws: int = 4,
        batch_size: int = 64,
        seed: int = 0,
    ) -> BoundEstimate:
        """Perplexity of a text: a true bound, or an exact likelihood, with its standard error.

        >>> estimate = model.perplexity("valid", records=4)
        >>> estimate.records, estimate.perplexity > 1
        (4, True)

        Args:
          dataset: "valid", a known set such as "wikitext", or NAME=SOURCE or SOURCE as
            `hybrid_jax.evaluate --datasets` takes them.
          likelihood: "order:RULE" for texts as an update rule writes them, such as
            "order:margin"; None for the model's own bound.
          records: of L tokens, at most; 0 for all.
          draws: of levels and noise for each record.
          batch_size: records at a time, among which draws are stratified.
          seed: of the draws.

        Raises:
          UserError: if the text cannot be read, or is too short for one record, the rule has no
            such likelihood, or a number is out of range.
        """
        bound = perplexity.bound_of(self, likelihood)
        valid = datasets.validation_set(self.experiment)
        chosen = datasets.parse(dataset, validation=valid)
        packed = perplexity.records_of(self, chosen, records)
        return perplexity.measure(
            self, chosen, packed, bound, draws=draws, batch_size=batch_size, seed=seed
        ).estimate


load = Model.load
