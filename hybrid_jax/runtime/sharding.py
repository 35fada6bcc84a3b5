"""The mesh of devices, and the part of each array that lives on each of them.

Arrays are described by *logical axes* ("batch", "embed", "heads", …); `RULES` says which mesh axes
cut each of them, and nothing else in the package names a mesh axis:

- ``data``    copies of the parameters, each with its own examples;
- ``fsdp``    examples as well, and parameters, their averages and the optimizer's moments in
  pieces, which are gathered where a layer needs them;
- ``tensor``  heads, MLP units and vocabulary, for layers that do not fit otherwise.

A mesh axis cuts an array's axis only where it divides it; what does not divide is kept whole. This
module imports nothing of the package but its errors, so that every other one may describe its
arrays. Without a mesh (one device, most tests) every function here leaves arrays as they are.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "embed": ("fsdp",),  # the model's width, in parameters
        "heads": ("tensor",),
        "mlp": ("tensor",),
        "vocab": ("tensor",),
        "whole": (),  # an axis that is never cut
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; -1, in at most one of them, is what the others leave.

    Attributes:
      data, fsdp, tensor: sizes. `fsdp` may be 0: the largest power of two, up to 16, that divides
        what the other axes leave. More pieces of a common model's width are smaller than a tile of
        an accelerator's memory, and are padded and moved as if they were whole.

    Raises `UserError` for sizes that make no sense.
    """

    data: int = -1
    fsdp: int = 0
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1 and not (name == "fsdp" and size == 0):
                raise UserError(
                    f"mesh.{name} must be at least 1, or -1 for the rest, but is {size}."
                )
        if list(sizes.values()).count(-1) > 1:
            raise UserError("Only one of mesh.data, mesh.fsdp and mesh.tensor may be -1.")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """The sizes for a number of devices. Raises `UserError` if they do not multiply to it."""
        chosen = {n: size for n, size in dataclasses.asdict(self).items() if size > 0}
        rest = devices // math.prod(chosen.values())
        sizes = {name: chosen.get(name, rest) for name in AXES}
        if self.fsdp == 0:
            fsdp = next(size for size in (16, 8, 4, 2, 1) if rest % size == 0)
            left = {name: rest // fsdp for name in AXES if name not in chosen}
            sizes |= left | {"fsdp": fsdp}
        if math.prod(sizes.values()) != devices:
            # Without what has its default, which the user may never have heard of.
            given = [f"mesh.{n}={s}" for n, s in chosen.items() if s != getattr(MeshConfig, n)]
            verb = "do" if len(given) > 1 else "does"
            count = f"{devices} device{'s' if devices > 1 else ''}"
            raise UserError(
                f"{' and '.join(given)} {verb} not fit {count}: choose sizes whose product is "
                f"{devices}, or -1 for one of them."
            )
        return sizes["data"], sizes["fsdp"], sizes["tensor"]


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all of all processes if None).

    Raises `UserError` if the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    # `jax.make_mesh` does the same, but lets two mesh axes share an axis of the TPU's torus (such
    # as tensor=2 on 4×4 chips) on v5e only.
    grid = mesh_utils.create_device_mesh(
        config.shape(len(devices)), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


def use(mesh: Mesh) -> AbstractContextManager[Any]:
    """The context in which `constrain` means this mesh."""
    return jax.set_mesh(mesh)


def platform() -> str:
    """The platform that the program being made will run on, "cpu", "gpu" or "tpu".

    The mesh in use says so, also where its devices are not there (`aot`).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return math.prod(mesh.shape[name] for name in RULES["batch"])


def partition_spec(
    sizes: Mapping[str, int], shape: Sequence[int], axes: Sequence[str]
) -> PartitionSpec:
    """The cut of an array of `shape`, with these logical axes, on a mesh of these sizes.

    Raises ValueError for an unknown axis, a wrong number of axes, or one mesh axis used twice.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{tuple(axes)} does not name the axes of shape {tuple(shape)}")
    parts: list[tuple[str, ...] | None] = []
    used: list[str] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in RULES:
            raise ValueError(f"{axis!r} is no logical axis; known are {', '.join(RULES)}")
        names = tuple(name for name in RULES[axis] if sizes.get(name, 1) > 1)
        used += names
        divides = size % math.prod(sizes[name] for name in names) == 0
        parts.append(names if names and divides else None)
    if len(used) != len(set(used)):
        raise ValueError(f"{tuple(axes)} uses a mesh axis twice")
    while parts and parts[-1] is None:  # as JAX writes it: another spelling compiles anew
        parts.pop()
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Tells the compiler how `x` is to be cut; no-op without a mesh. Raises as `partition_spec`."""
    mesh = jax.sharding.get_abstract_mesh()
    wanted = partition_spec(dict(mesh.shape), x.shape, axes)
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, wanted)


def gathered(x: jax.Array, dtype: Any, *axes: str) -> jax.Array:
    """A parameter as a layer reads it: in `dtype`, and whole along what is cut among examples.

    It is cast before it is gathered, so that fewer bytes travel. Its gradient is summed for each
    device's own piece only: the transpose of a plain constraint would ask for the whole sum on
    every device.

    Args:
      axes: logical axes of the parameter as it is stored.
    """
    among_examples = set(RULES["batch"])
    read = tuple("whole" if among_examples & set(RULES[axis]) else axis for axis in axes)

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return constrain(constrain(x.astype(dtype), *axes), *read)

    def forward(x: jax.Array) -> tuple[jax.Array, None]:
        return gather(x), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (constrain(gradient, *axes).astype(x.dtype),)

    gather.defvjp(forward, backward)
    return gather(x)


def on(mesh: Mesh, shape: Sequence[int], *axes: str) -> NamedSharding:
    """The sharding of an array of `shape` with these logical axes. Raises as `partition_spec`."""
    return NamedSharding(mesh, partition_spec(dict(mesh.shape), shape, axes))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def like_parameters(mesh: Mesh, tree: Any, axes: Mapping[str, tuple[str, ...]]) -> Any:
    """Shardings of a tree whose leaves are parameters, or belong to one, or are whole.

    Args:
      tree: arrays or shapes. A leaf belongs to the parameter whose path its own path ends in, if
        it has its shape: so do averages and an optimizer's moments.
      axes: logical axes of each parameter by its path ("layers/qkv").
    """
    longest_first = sorted(axes, key=len, reverse=True)

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        for parameter in longest_first:
            if name.endswith("/" + parameter) and len(axes[parameter]) == len(leaf.shape):
                return on(mesh, leaf.shape, *axes[parameter])
        return everywhere(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct` that say where each leaf goes."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a global batch that the devices of this process hold, int64, ascending.

    Raises `UserError` if the batch does not divide among the devices.
    """
    shards = batch_shards(mesh)
    if batch % shards:
        raise UserError(
            f"A batch of {batch} does not divide among {shards} devices: choose a multiple of "
            f"{shards}, or another mesh."
        )
    indices = on(mesh, (batch,), "batch").addressable_devices_indices_map((batch,)).values()
    rows = {row for index in indices if index for row in range(*index[0].indices(batch))}
    return np.array(sorted(rows))


def place_rows(mesh: Mesh, local: np.ndarray, batch: int) -> jax.Array:
    """The global array [batch, …] of which this process has the `local_rows`, cut along its batch.

    Args:
      local: these rows, ascending, [rows, …].
    """
    shape = (batch, *local.shape[1:])
    where = on(mesh, shape, "batch", *("whole",) * (local.ndim - 1))
    placed: jax.Array = jax.make_array_from_process_local_data(where, local, shape)
    return placed


def bytes_per_device(shapes: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
