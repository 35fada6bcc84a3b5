"""The largest batch whose program fits the memory of a device."""

import sys
import time
from collections.abc import Callable

from jax.sharding import Mesh

from hybrid_jax.aot import programs
from hybrid_jax.aot.programs import DoesNotFit, Program
from hybrid_jax.aot.report import size
from hybrid_jax.config import Experiment
from hybrid_jax.errors import UserError


def fit(
    experiment: Experiment, mesh: Mesh, step: str, capacity: int
) -> tuple[Program, dict[int, int | None]]:
    """The program of the largest batch that fits, and the bytes of all that were tried.

    Tells every trial on standard error. Raises UserError if not even one example fits.
    """
    begun = time.monotonic()
    found: dict[int, Program] = {}
    tensor = mesh.shape["tensor"]
    where = "a device" if tensor == 1 else f"on every {tensor} devices"

    def needs(each: int) -> int | None:
        try:
            found[each] = programs.build(experiment, mesh, step, each)
        except DoesNotFit as error:
            peak, said = None, str(error)
        else:
            peak = found[each].memory.peak
            said = f"{size(peak)} of {size(capacity)}"
        spent = time.monotonic() - begun
        print(f"[{spent:6.0f} s] {each} {where}: {said}", file=sys.stderr, flush=True)
        return peak

    best, tried = largest_batch(needs, capacity)
    if not best:
        raise UserError(
            "Not even one example a device fits: use more devices with mesh.fsdp or mesh.tensor, "
            "or model.remat=true."
        )
    print(f"largest that fits: {best} {where} at a time", file=sys.stderr)
    return found[best], tried


def largest_batch(
    needs: Callable[[int], int | None], capacity: int, most: int = 4096
) -> tuple[int, dict[int, int | None]]:
    """The largest batch that fits, of 1, 2, … 8 and then four to an octave (10, 12, 14, 16, 20 …).

    Args:
      needs: bytes for a batch, None where that is refused. Slow, so it is called for few batches:
        they grow as the memory found so far promises, and then close in.

    Returns:
      that batch, 0 if none fits; and what was found for each that was tried.
    """
    found: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        found[batch] = needs(batch)
        return (found[batch] or capacity + 1) <= capacity

    good, batch = 0, 1
    while batch > good and fits(batch):
        good, batch = batch, min(_promised(found, capacity), most)
    while _after(good) < batch:
        middle = _sensible((good + batch) // 2)
        middle = middle if middle > good else _after(good)
        good, batch = (middle, batch) if fits(middle) else (good, middle)
    return good, found


def _promised(found: dict[int, int | None], capacity: int) -> int:
    """The largest batch that fits if memory goes on to grow as it did last."""
    (low, less), (high, more) = [(0, None), *found.items()][-2:]
    assert more is not None
    if less is None:
        return 2 * high
    slope = (more - less) / (high - low)
    promised = high + (capacity - more) / slope if slope > 0 else 8 * high
    return max(_sensible(int(min(promised, 8 * high))), _after(high))


def _sensible(batch: int) -> int:
    """Rounds down to three binary digits."""
    digits = max(0, batch.bit_length() - 3)
    return batch >> digits << digits


def _after(batch: int) -> int:
    return batch + (1 << max(0, batch.bit_length() - 3))
