"""Optimisers, learning-rate schedules, and the moving average of the parameters.

Parameters are a nested dict. Leaves below a key ``layers`` are stacked: their first axis is the
layer, so a matrix has three axes, ``[layers, inputs, outputs…]``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from hybrid_jax.errors import UserError, check_count, check_settings, only, resolved

# Gives Muon's updates the root mean square that AdamW's have, so that one learning rate and one
# weight decay serve both (arXiv 2502.16982).
MUON_UPDATE_RMS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimiser and its learning-rate schedule. Raises `UserError` for values out of range.

    Attributes:
      name: "adamw", or "muon" for the layers' weight matrices with AdamW for the rest.
      learning_rate: peak learning rate, > 0.
      warmup_steps: steps from learning rate 0 to the peak; a training of fewer steps warms up
        until its end (see `warmup`).
      schedule: of the learning rate after the warm-up.
      final_fraction: learning rate at the last step as a fraction of the peak, in [0, 1], of
        "cosine" and "linear"; 0.1 for None.
      beta1, beta2, epsilon: of AdamW.
      weight_decay: decoupled, times the learning rate; on matrices only (see `is_decayed`).
      clip_norm: global norm to clip gradients to; None or 0 for no clipping.
      muon_learning_rate: peak for Muon's matrices; None for ``learning_rate``.
      muon_momentum: momentum of Muon (Nesterov), in [0, 1); 0.95 for None.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    final_fraction: float | None = only(0.1, schedule=("cosine", "linear"))
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    muon_learning_rate: float | None = only(name="muon")
    muon_momentum: float | None = only(0.95, name="muon")

    def __post_init__(self) -> None:
        check_settings(self, "optimizer.", warmup_steps=0, weight_decay=0, clip_norm=0)
        valid: Callable[[float], bool]
        for names, valid, rule in (
            (("learning_rate", "epsilon", "muon_learning_rate"), lambda x: x > 0, "above 0"),
            (("beta1", "beta2", "muon_momentum"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
            (("final_fraction",), lambda x: 0 <= x <= 1, "between 0 and 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not valid(value):
                    raise UserError(f"optimizer.{name} must be {rule}, but is {value}.")


def learning_rate_at(
    config: OptimizerConfig, total_steps: int, peak: float | None = None
) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far, float32 scalar.

    0 at step 0 (if there is a warm-up), the peak at the end of the warm-up, the final value from
    ``total_steps`` on.

    Args:
      peak: None for ``config.learning_rate``.

    Raises:
      UserError: if ``total_steps`` < 1.
    """
    check_count(total_steps, "train.steps")
    peak = peak or config.learning_rate
    warmup_steps = warmup(config, total_steps)
    decay_steps = max(1, total_steps - warmup_steps)
    final_fraction = resolved(config).final_fraction
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=final_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * final_fraction, decay_steps)
    else:
        after = optax.constant_schedule(peak)
    if warmup_steps == 0:
        return after
    rising = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rising, after], [warmup_steps])


def warmup(config: OptimizerConfig, total_steps: int) -> int:
    """Steps of the warm-up in a training of ``total_steps``, so that a short trial needs no other
    config."""
    return min(config.warmup_steps, total_steps)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, params_abstract: Any
) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimiser with its schedule.

    Args:
      params_abstract: the parameters, or a `jax.ShapeDtypeStruct` for each; only paths and shapes
        are used, so nothing is computed.

    Raises:
      UserError: as `learning_rate_at`, or if "muon" finds no weight matrix under ``layers``.
    """
    adamw = optax.adamw(
        learning_rate_at(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_map_with_name(is_decayed, params_abstract),
    )
    optimizer = adamw
    if config.name == "muon":
        optimizer = _with_muon(config, total_steps, params_abstract, adamw)
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def is_hidden_matrix(path: str, leaf: Any) -> bool:
    """True if a parameter is a stack of layer weight matrices, which Muon optimises.

    ``path`` is the parameter's path, such as ``"layers/mlp/in"``; ``leaf`` has an ``ndim``.
    """
    return "layers" in path.split("/") and leaf.ndim >= 3 and not _is_norm_or_bias(path)


def is_decayed(path: str, leaf: Any) -> bool:
    """True if weight decay applies: to matrices that are not embeddings, norms or biases.

    Arguments as in `is_hidden_matrix`. The layer axis of stacked parameters does not count, so
    ``layers/norm1/scale`` [layers, width] is a vector.
    """
    axes = leaf.ndim - ("layers" in path.split("/"))
    return axes >= 2 and "embedding" not in path and not _is_norm_or_bias(path)


def ema_update(ema: Any, params: Any, decay: float, step: jax.Array | int) -> Any:
    """One update of the moving average of the parameters.

    The decay is ``min(decay, (1 + step) / (10 + step))``, so that early averages are not held
    back by the initial parameters.

    Args:
      ema: the average before, float32 leaves.
      params: pytree like ``ema``, any float dtype.
      decay: in [0, 1).
      step: number of updates already made, int32 scalar; may be traced.

    Returns:
      the average after, float32 leaves.
    """
    step = jnp.asarray(step, jnp.float32)
    rate = 1 - jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))

    def update(average: jax.Array, value: jax.Array) -> jax.Array:
        average = average.astype(jnp.float32)
        return average + rate * (value.astype(jnp.float32) - average)

    return jax.tree.map(update, ema, params)


def _with_muon(
    config: OptimizerConfig,
    total_steps: int,
    params_abstract: Any,
    rest: optax.GradientTransformation,
) -> optax.GradientTransformation:
    def dimensions(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not is_hidden_matrix(path, leaf):
            return None
        # Axis 0, the layer, is in neither: Muon treats such axes as a batch, so each layer's
        # matrix is orthogonalised by itself.
        return optax.contrib.MuonDimensionNumbers(1, tuple(range(2, leaf.ndim)))

    labels = _map_with_name(
        lambda path, leaf: "muon" if is_hidden_matrix(path, leaf) else "rest", params_abstract
    )
    if "muon" not in jax.tree.leaves(labels):
        raise UserError(
            "muon found no weight matrix under 'layers' in the parameters; use adamw instead."
        )
    muon = optax.contrib.muon(
        learning_rate_at(config, total_steps, config.muon_learning_rate),
        beta=resolved(config).muon_momentum,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_map_with_name(dimensions, params_abstract),
        consistent_rms=MUON_UPDATE_RMS,
    )
    # Muon's own fallback is AdamW with Nesterov momentum and one decay for all its leaves.
    return optax.partition({"muon": muon, "rest": rest}, labels)


def _map_with_name(function: Any, params: Any) -> Any:
    def named(path: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return jax.tree_util.tree_map_with_path(named, params)


def _is_norm_or_bias(path: str) -> bool:
    names = path.split("/")
    return "bias" in names[-1] or any("norm" in name for name in names)
