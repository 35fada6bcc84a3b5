"""Checkpoints that are verified when they are read. The only module that imports Orbax.

A step is a folder ``<directory>/<step>`` with two Orbax items: ``state``, the leaves as a flat
dict keyed by their path (``ema/head/kernel``), so that no Python class is tied to the files and a
reader can take a part of the leaves; and ``meta``, JSON with the path, shape, dtype and checksum
of each leaf, the run's config, and a checksum of all this.

Orbax makes a *save* atomic, but restores changed bytes without complaint, lists folders that an
interrupted deletion left hollow, and does not fall back to an older step. Here each leaf is
compared with its checksum, and a step that fails is moved to ``<directory>/quarantine`` once an
older one has been restored. Nothing is deleted because it could not be read.
"""

import itertools
import logging
import math
import os
import sys
import uuid
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.checkpoint_managers as managers
from etils import epath  # a dependency of Orbax, in whose interface it is
from jax.experimental import multihost_utils

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.files import expanded, one_line, unwritable, writing
from hybrid_jax.runtime.json_text import json_text
from hybrid_jax.runtime.processes import Barriers, PartedError, raise_on_all

logger = logging.getLogger(__name__)

_HANDLERS = {"state": ocp.PyTreeCheckpointHandler, "meta": ocp.JsonCheckpointHandler}
_openings = itertools.count()  # of folders to be written, the same on every process
FORMAT = 1  # of the layout above; raise it when older readers would misread a new layout
_UNRATED = sys.float_info.max  # the worst score that is a number in JSON


class DamagedCheckpointError(UserError):
    """A step that exists but cannot be read, or whose values differ from those saved."""

    def __init__(self, where: Path, why: str):
        super().__init__(f"The checkpoint {where} is damaged: {why}; restore another step.")


class Checkpointer(AbstractContextManager["Checkpointer"]):
    """Saves and restores a state: any pytree whose leaves are `jax.Array`s (typed keys too).

    A context manager; leaving it waits for a running save. Every process makes the same calls.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        config: dict[str, Any] | None = None,
        read_only: bool = False,
        background: bool = True,
    ):
        """Opens ``directory``, creating it where it is to be written.

        Args:
          directory: folder of the steps. A local or shared file system, not a bucket URL.
          keep: how many of the newest steps to keep, at least 1; the best of all is kept besides.
          config: JSON-serialisable description of the run, stored with each step.
          background: whether `save` returns before all is written, for which it copies the state.
          read_only: changes nothing on disk, so it is safe beside a running training; the
            folder need not exist.

        Raises `UserError` if ``keep`` < 1, or if the folder cannot be created or written.
        """
        if keep < 1:
            raise UserError(f"keep = {keep} keeps no checkpoint; set it to 1 or more.")
        self.directory = expanded(directory).absolute()  # Orbax refuses relative paths
        self._config = config
        self._read_only = read_only
        if not read_only:
            self._probe()
        # Orbax's own read_only only turns off the same settings, and warns of it.
        best = managers.BestN(
            get_metric_fn=_score,
            reverse=True,  # it keeps the last, and lower is better
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = managers.AnyPreservationPolicy([managers.LatestN(n=keep), best])
        waiting = None
        if jax.process_count() > 1 and not read_only:
            client = ocp.multihost.get_jax_distributed_client()
            barriers = Barriers(client, f"hybrid_jax/checkpoints/{next(_openings)}")
            waiting = ocp.options.AsyncOptions(barrier_sync_fn=barriers.wait)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policy,
            best_fn=None if read_only else _score,  # Orbax writes no scores without it
            create=not read_only,
            enable_async_checkpointing=background,
            async_options=waiting,
            # What a killed save left behind; a reader must not remove a save in progress.
            cleanup_tmp_directories=not read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except Exception as error:  # damaged JSON of any step raises whatever Orbax meets in it
            raise UserError(
                f"{self.directory} cannot be listed ({one_line(error)}): move the bad step away."
            ) from error

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Copies ``state`` off the devices and writes it, by default in the background.

        ``score`` rates the state, lower is better; see `best_step`. One that is not finite is none.

        When this returns, the state's buffers may be donated. It blocks while an earlier save is
        running, until ``state`` is computed, and for the copy to the host.

        Raises `UserError` if an earlier save failed or this one cannot be written, RuntimeError
        if Orbax skips the step, as it does for one not newer than the latest.
        """
        if self._read_only:
            raise RuntimeError("save() on a read-only Checkpointer")
        self.wait()
        raise_on_all(self._probe)  # a folder that Orbax cannot make is waited for
        leaves = named_leaves(state)
        # Taken now, from these very buffers: the next training step may overwrite them.
        sums = _digest(leaves)
        rows = [{**_describe(name, leaves[name]), "checksum": sums[name]} for name in leaves]
        meta: dict[str, Any] = {"format": FORMAT, "leaves": rows, "config": self._config}
        meta["crc32"] = _crc32(meta)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), meta=ocp.args.JsonSave(meta))
        unrated = score is None or not math.isfinite(score)
        metrics = {"score": _UNRATED if unrated else score}
        with writing(self.directory):
            saved = self._manager.save(step, args=args, metrics=metrics)
        if not saved:
            newest = self._manager.latest_step()
            raise RuntimeError(f"Orbax skipped the checkpoint of step {step}; newest is {newest}")

    def wait(self) -> None:
        """Blocks until the running save is on disk. Raises `UserError` if it failed anywhere."""
        if not raise_on_all(self._finished):
            raise UserError(f"Not every process could write {self.directory}: see what each says.")

    def close(self) -> None:
        """Waits for the running save, then releases Orbax's threads. Raises if it failed here."""
        try:
            self._finished()
        finally:
            self._manager.close()

    def _probe(self) -> None:
        """Raises `UserError` if nothing can be written."""
        probe = self.directory / f".probe.{uuid.uuid4().hex}"
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()

    def _finished(self) -> bool:
        """Waits for the own part of the running save: False if another process's part failed."""
        try:
            self._manager.wait_until_finished()
        # TensorStore makes a full disk a ValueError.
        except (OSError, ValueError, PartedError) as error:
            cause: BaseException | None = error
            while isinstance(cause, PartedError):
                cause = cause.__context__
            if cause is None:
                return False
            raise unwritable(self.directory, cause) from error
        return True

    def steps(self) -> list[int]:
        """All listed steps, oldest first; a listed step may still prove to be damaged."""
        if self._read_only:
            self._manager.reload()  # a training may have saved since
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The listed step with the lowest score; None if none has a score."""
        metrics = {step: self._manager.metrics(step) for step in self.steps()}
        scores = {step: _score(found) for step, found in metrics.items() if found}
        rated = [step for step in scores if scores[step] < _UNRATED]
        return min(rated, key=lambda step: scores[step], default=None)

    def restore(
        self, abstract: Any, *, step: int | None = None, partial: bool = False
    ) -> tuple[int, Any] | None:
        """Restores a step, equal bit for bit to the state that was saved.

        Damaged steps that are newer are reported with `logging.warning` and moved to
        ``<directory>/quarantine`` (unless `partial` or read-only).

        Args:
          abstract: the state's pytree with `jax.ShapeDtypeStruct` leaves, whose shardings say where
            each leaf goes; they need not be those it was saved with. Floats of 16 bits are widened
            to 32 where these are asked for.
          step: None for the newest that is intact.
          partial: whether `abstract` is a part, which alone is read and verified: a nested dict
            with the part at its place, such as ``{"ema": abstract_params}`` for a state with a
            field or key ``ema``.

        Returns:
          (step, state); None if `step` is None and there is no checkpoint.

        Raises:
          DamagedCheckpointError: if `step` cannot be read or its values are not those saved.
          UserError: if there is no such step, its leaves (those of the newest readable step where
            `step` is None) have other names, shapes or dtypes, or every step is damaged. Nothing is
            moved in these cases.
          ValueError: if a sharding does not divide its leaf.
        """
        if step is not None:
            return step, self._load(step, abstract, partial)
        damaged: dict[int, DamagedCheckpointError] = {}
        for listed in reversed(self.steps()):
            try:
                state = self._load(listed, abstract, partial)
            except DamagedCheckpointError as error:
                logger.warning("%s", error)
                damaged[listed] = error
            else:
                if damaged and not (partial or self._read_only):
                    self._quarantine(list(damaged))
                return listed, state
        if not damaged:
            return None
        # A failing disk or a wrong version is likelier than so many bad files: move nothing.
        causes = " ".join(str(error) for error in damaged.values())
        raise UserError(f"No checkpoint in {self.directory} can be restored. {causes}")

    def _load(self, step: int, abstract: Any, partial: bool) -> Any:
        where = self.directory / str(step)
        saved = {leaf["path"]: leaf for leaf in self._read_meta(step)["leaves"]}
        wanted = named_leaves(abstract)
        _check_structure(where, saved, wanted, partial)
        for leaf in wanted.values():
            leaf.sharding.shard_shape(leaf.shape)  # JAX explains a sharding that does not divide
        wide = {n: x.dtype for n, x in wanted.items() if str(x.dtype) != saved[n]["dtype"]}
        for name in wide:
            leaf, narrow = wanted[name], saved[name]["dtype"]
            wanted[name] = jax.ShapeDtypeStruct(leaf.shape, narrow, sharding=leaf.sharding)
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        leaves = self._restore_item(step, "state", args)
        for name, value in _digest(leaves).items():
            if value != saved[name]["checksum"]:
                raise DamagedCheckpointError(where, f"the values of {name} are not those saved")
        for name, dtype in wide.items():
            leaves[name] = leaves[name].astype(dtype)
        found = [leaves[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), found)

    def _read_meta(self, step: int) -> dict[str, Any]:
        where = self.directory / str(step)
        if step not in self._manager.all_steps():
            raise UserError(f"There is no checkpoint {where}; choose one of {self.steps()}.")
        meta = self._restore_item(step, "meta")
        if not isinstance(meta, dict) or meta.get("crc32") != _crc32(meta):
            raise DamagedCheckpointError(where, "its item 'meta' fails its checksum")
        if meta["format"] != FORMAT:
            raise UserError(
                f"The checkpoint {where} has format {meta['format']}, and this version of "
                f"hybrid_jax reads format {FORMAT}; use the version that wrote it."
            )
        return meta

    def _restore_item(self, step: int, item: str, args: Any = None) -> Any:
        # Not by the manager's restore(): it ends in a barrier, and a process that cannot read
        # its shards would never reach it. These handlers read, and communicate nothing.
        handler = _HANDLERS[item]()
        where = self.directory / str(step)
        restored, cause = None, None
        try:
            restored = handler.restore(epath.Path(where / item), args=args)
        except Exception as error:  # noqa: BLE001 - a truncated file raises a bare Exception
            cause = error
        finally:
            handler.close()
        # All processes must take the same branch: what follows communicates.
        if not np.all(multihost_utils.process_allgather(np.array(cause is None))):
            reason = one_line(cause) if cause else "another process could not read it"
            raise DamagedCheckpointError(where, f"cannot read its {item} ({reason})") from cause
        return restored

    def _quarantine(self, steps: Sequence[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                source = self.directory / str(step)
                target = self.directory / "quarantine" / str(step)
                if target.exists():  # from an earlier time that this step was damaged
                    target = target.with_name(f"{step}.{uuid.uuid4().hex[:8]}")
                with writing(self.directory):
                    target.parent.mkdir(exist_ok=True)
                    source.rename(target)
                logger.warning("Moved the damaged checkpoint %s to %s.", source, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("hybrid_jax quarantine")
        self._manager.reload()


def _score(metrics: Any) -> float:
    """The score in the metrics of a step; infinity, as for none, where they are damaged."""
    score = metrics.get("score") if isinstance(metrics, dict) else None
    return float(score) if isinstance(score, int | float) else math.inf


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, in flattening order: ``{"ema/head/kernel": leaf, …}``.

    Raises TypeError for a leaf that is neither an array nor a `jax.ShapeDtypeStruct`, ValueError
    if two leaves have the same path, because a key contains a slash.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"leaf {name} is a {type(leaf).__name__}, not a jax.Array")
        if name in leaves:
            raise ValueError(f"two leaves of the state have the path {name}")
        leaves[name] = leaf
    return leaves


@jax.jit
def checksum(leaf: jax.Array) -> jax.Array:
    """A uint32 that is exact and the same for every sharding.

    Each word is mixed with its index by a bijection, and the results are added modulo 2³²: a
    change of one word is always seen, any other but for one in 2³². (A plain weighted sum misses
    zeroed pages of values such as 1.0, whose bit patterns end in many zeros.) A leaf may be bool,
    an integer or float of 8 to 64 bits, or typed keys.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    # 64-bit words become a last axis of two 32-bit ones.
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
    # The flat index from one iota per axis: flattening would gather a sharded leaf.
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = words + (index + 1) * jnp.uint32(0x9E3779B1)
    # The finaliser of MurmurHash3, a bijection on 32-bit words.
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _digest(leaves: dict[str, jax.Array]) -> dict[str, int]:
    # One by one: together they need as much memory again as the leaves.
    return {name: int(np.asarray(checksum(leaf))) for name, leaf in leaves.items()}


def _crc32(meta: dict[str, Any]) -> int:
    covered = {field: meta.get(field) for field in ("format", "leaves", "config")}
    return zlib.crc32(json_text(covered, ensure_ascii=True).encode())


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    return {"path": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _check_structure(
    where: Path, saved: dict[str, Any], wanted: dict[str, Any], partial: bool
) -> None:
    advice = "use the config that the checkpoint was trained with"
    if not partial and all(name.startswith("ema/") for name in saved):
        raise UserError(
            f"The checkpoint {where} holds averaged parameters and no training: start one from its "
            "workdir, with --init and another --workdir."
        )
    for name, leaf in wanted.items():
        if name not in saved:
            raise UserError(f"The checkpoint {where} has no leaf {name}; {advice}.")
        have, want = saved[name], _describe(name, leaf)
        if have["dtype"] in ("bfloat16", "float16") and want["dtype"] == "float32":
            want["dtype"] = have["dtype"]
        if any(have[field] != want[field] for field in want):
            raise UserError(
                f"In the checkpoint {where} the leaf {name} is {have['dtype']}{have['shape']} and "
                f"this run needs {leaf.dtype}{want['shape']}; {advice}."
            )
    extra = next((name for name in saved if name not in wanted), None)
    if extra is not None and not partial:
        raise UserError(f"The checkpoint {where} has a leaf {extra} unknown to this run; {advice}.")
