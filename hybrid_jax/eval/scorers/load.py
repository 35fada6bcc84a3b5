"""Scorers by name, each with the tokenizer that it reads.

A run of this package is one for tokenizers and machines without a GPT-2. It should have taken no
part in making the texts. It is as small as the scored model, so its numbers compare models and
samplers of one project, and not with those of papers.
"""

from pathlib import Path

from jax.sharding import Mesh

from hybrid_jax.data.tokenizers import gpt2 as tokenizers
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.eval.scorers.base import Scorer
from hybrid_jax.interop import families, family_config
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding, weights
from hybrid_jax.runtime.files import expanded
from hybrid_jax.training import pretrained


class _Reader(Transformer):
    """A network without rows for MASK: to cut off their logits would copy all others."""

    @property
    def rows(self) -> int:
        return self.vocab_size


def load(name: str, mesh: Mesh | None = None) -> tuple[Scorer, Tokenizer]:
    """The scorer of a name, with its tokenizer.

    Args:
      name: "run:DIR", the workdir of an autoregressive run, or "gpt2:SOURCE", a folder or a name on
        the Hugging Face hub such as "gpt2-large", with the tokenizer's files beside the weights.
      mesh: of the devices to use; None for the first one.

    Raises:
      UserError: for anything else, or if it cannot be read.
    """
    kind, _, source = name.partition(":")
    if kind == "run" and source:
        return _of_run(source, mesh)
    if kind == "gpt2" and source:
        folder = weights.find(source, others=("vocab.json", "merges.txt"))
        return gpt2(folder, name=source, mesh=mesh), tokenizers.load(folder)
    raise UserError(
        f"There is no scorer {name!r}: write run:DIR for an autoregressive run, or gpt2:FOLDER, or "
        "gpt2:NAME for one of the Hugging Face hub."
    )


def gpt2(folder: Path, *, name: str = "", mesh: Mesh | None = None) -> Scorer:
    """A GPT-2 of any size from a folder as Hugging Face has it.

    Raises:
      UserError: if files are missing, or hold no GPT-2 with a tied head.
    """
    path, mesh = folder / weights.CONFIG, mesh or sharding.one_device()
    config = weights.read_json(path)
    form, rows = family_config.read_config(config, path)
    if config["model_type"] != "gpt2":
        raise UserError(f"{path} has model_type={config['model_type']}: a scorer has to be gpt2.")
    network = _Reader(vocab_size=rows, **form)
    params = families.parameters(network, folder, rows, mesh)
    return Scorer(name=name, network=network, params=params, mesh=mesh, context=form["positions"])


def _of_run(workdir: str | Path, mesh: Mesh | None) -> tuple[Scorer, Tokenizer]:
    """An autoregressive run such as `configs/ar.py` trains, and its tokenizer.

    It reads behind a beginning-of-sequence token; its context is one token more than the records
    that it was trained on.
    """
    workdir = expanded(workdir)
    model = pretrained.load(workdir, mesh=mesh)
    if not model.spec.layout.plain(model.spec.schedule):
        raise UserError(
            f"{workdir} cannot score texts: it holds a run of {model.spec.schedule.name} with "
            f"{model.spec.layout.alignment} rows, where a scorer must predict each token from "
            "those before it; train one with configs/ar.py."
        )
    scorer = Scorer(
        name=f"{workdir}, step {model.step}", network=model.network, params=model.params,
        mesh=model.mesh, context=model.spec.schedule.length + 1, needs_bos=True,
    )  # fmt: skip
    return scorer, model.tokenizer
