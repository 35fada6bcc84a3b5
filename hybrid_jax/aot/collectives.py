"""Traffic that a compiled program sends between devices, read from its text (XLA's HLO)."""

import collections
import dataclasses
import math
import re

_KINDS = (
    "all-gather|all-reduce|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute"
    "|collective-broadcast"
)
_OPERATION = re.compile(rf" = (.*?) ({_KINDS})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALL = re.compile(
    r"\b(body|condition|calls|to_apply|called_computations|branch_computations"
    r"|true_computation|false_computation)=(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Operations between devices, all of one kind and with one result.

    Attributes:
      kind: such as "all-gather".
      result: types of what a device has after one of them.
      bytes: of that.
      in_loop: whether they are in a loop, and run more often than `count` says.
      count: how many there are in the text.
    """

    kind: str
    result: str
    bytes: int
    in_loop: bool
    count: int


def count(text: str) -> tuple[Collective, ...]:
    """The collective operations in the text of a program, the largest first.

    The parts that one asynchronous operation is cut into share its channel, and count once.
    """
    found: dict[object, tuple[str, str, str]] = {}
    calls: dict[str, set[str]] = collections.defaultdict(set)
    bodies: set[str] = set()
    here = ""
    for number, line in enumerate(text.splitlines()):
        if not line.startswith(" "):
            header = _HEADER.match(line)
            here = header[1] if header else here
            continue
        for role, names, name in _CALL.findall(line):
            called = {part.strip(" %") for part in (names or name).split(",")}
            calls[here] |= called
            if role == "body":
                bodies |= called
        operation = _OPERATION.search(line)
        if operation:
            type_, kind, start = operation.groups()
            channel = _CHANNEL.search(line)
            key = (kind, channel[1]) if channel else number
            found.setdefault(key, (here, kind, _result(kind, type_, bool(start))))

    repeated = _reachable(calls, bodies)
    counts = collections.Counter(
        (kind, result, where in repeated) for where, kind, result in found.values()
    )
    every = [
        Collective(kind=kind, result=result, bytes=_bytes(result), in_loop=in_loop, count=times)
        for (kind, result, in_loop), times in counts.items()
    ]
    return tuple(sorted(every, key=lambda c: (-c.bytes, c.kind, c.result, c.in_loop)))


def _result(kind: str, type_: str, start: bool) -> str:
    arrays = [f"{name}[{sizes}]" for name, sizes in _ARRAY.findall(type_)]
    if start and kind != "all-reduce":
        # Operands, results, and semaphores on TPUs.
        arrays = [array for array in arrays if array != "u32[]"]
        arrays = arrays[len(arrays) // 2 :]
    return ", ".join(arrays)


def _bytes(result: str) -> int:
    total = 0
    for name, sizes in _ARRAY.findall(result):
        bits = re.search(r"\d+", name)
        size = math.prod(int(length) for length in sizes.split(",") if length)
        total += -(-size * (int(bits[0]) if bits else 8) // 8)
    return total


def _reachable(calls: dict[str, set[str]], begin: set[str]) -> set[str]:
    reached, new = begin, begin
    while new:
        new = {name for caller in new for name in calls.get(caller, ())} - reached
        reached = reached | new
    return reached
