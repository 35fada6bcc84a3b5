"""The numbers of a compiled program, for people."""

from collections.abc import Sequence
from typing import Any

from hybrid_jax.aot.programs import Program
from hybrid_jax.training import flops

_SHOWN = 16  # collectives


def report(program: Program, step: str, devices: Sequence[Any]) -> str:
    """The numbers of a program as text."""
    peak, capacity = flops.peak_flops(devices[0]), flops.memory_bytes(devices[0])
    memory, each = program.memory, program.batch / len(devices)
    lines = [
        f"{'training step' if step == 'train' else 'sampling loop'}: batch {program.batch:,} "
        f"({each:g} a device), compiled in {program.seconds:.1f} s",
        "  memory of a device",
        f"    arguments            {_size(memory.arguments)}",
        f"    temporaries          {_size(memory.temporaries)}",
        f"    output, not aliased  {_size(memory.output)}",
        f"    at the peak          {_size(memory.peak)}" + _share(memory.peak, capacity),
    ]
    if program.flops:
        mine = program.flops / len(devices)
        lines += [f"  model FLOPs            {program.flops:.3g} a step, {mine:.3g} a device"]
        if peak:
            fastest = 1e3 * mine / peak
            times = [f"{fastest / share:.3g} ms at {share:.0%}" for share in (1, 0.5, 0.4)]
            lines += [f"    step time            {', '.join(times)} of {peak / 1e12:g} TFLOP/s"]
    lines += ["  communication of a device, by size of result (what is in loops runs more often)"]
    for item in program.collectives[:_SHOWN]:
        result = item.result if len(item.result) <= 60 else item.result[:59] + "…"
        where = "in a loop" if item.in_loop else ""
        lines += [f"    {_size(item.bytes)} × {item.count:<2} {item.kind:19}{where:10} {result}"]
    hidden = program.collectives[_SHOWN:]
    if hidden:
        number, most = sum(item.count for item in hidden), size(hidden[0].bytes)
        lines += [f"    and {number} of at most {most}"]
    elif not program.collectives:
        lines += ["    none"]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes in three digits and a unit."""
    return _size(count).strip()


def _size(count: float) -> str:
    for unit in ("B  ", "KiB", "MiB"):
        if count < 1000:
            return f"{count:7.3g} {unit}"
        count /= 1024
    return f"{count:7.2f} GiB"


def _share(total: int, capacity: int | None) -> str:
    if not capacity:
        return ""
    share = total / capacity
    bar = "█" * min(20, round(20 * share))
    verdict = "" if share <= 1 else ": does not fit"
    return f" of {size(capacity)}  {bar:░<20} {share:.0%}{verdict}"
