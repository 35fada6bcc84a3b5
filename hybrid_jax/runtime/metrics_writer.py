"""The log of a run: metrics.jsonl, and a board that plots it."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from hybrid_jax.errors import UserError
from hybrid_jax.runtime.boards import Board
from hybrid_jax.runtime.decode import checked, parse_json
from hybrid_jax.runtime.files import expanded, write_atomic, writing
from hybrid_jax.runtime.json_text import json_text


class MetricsWriter(AbstractContextManager["MetricsWriter"]):
    """Appends to ``<workdir>/metrics.jsonl`` and to a board. A context manager.

    A line is ``{"step": 10, "kind": "train", "loss": 2.5, …}``; values that are not finite are
    null. Only one process of a run may write.

    Attributes:
      path: of the log.
      found: (step, kind) of the lines kept when it was opened.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resume_step: int,
        board: Callable[[], Board | None] = lambda: None,
    ):
        """Opens the log and drops the lines after ``resume_step``.

        Args:
          workdir: folder of the run; created if absent.
          resume_step: step of the restored checkpoint, 0 for a new run. Lines of later steps,
            which will be logged again, and a last line cut off by a kill are dropped.
          board: opens what gets all that the log gets, but for values that are not finite; called
            when nothing of the log can be refused any more, and closed with it.

        Raises:
          UserError: if the folder cannot be written, or a line before the last is not one of
            this log's.
        """
        self.path = expanded(workdir) / "metrics.jsonl"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a").close()  # before the board is opened
            kept, self.found, drops = _kept(self.path, resume_step)
            self._board = board()
            if drops:
                write_atomic(self.path, kept)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one line, and flushes it to the operating system.

        Args:
          step: updates made so far.
          kind: "train", "valid", …; the board shows ``<kind>/<name>``.
          values: by name, which is neither "step" nor "kind".

        Raises:
          UserError: if the file cannot be written.
          ValueError: for a reserved name.
        """
        if reserved := {"step", "kind"} & values.keys():
            raise ValueError(f"a metric may not be called {' or '.join(sorted(reserved))}")
        numbers = {name: float(value) for name, value in values.items()}
        with writing(self.path):
            self._file.write(json_text({"step": int(step), "kind": kind, **numbers}) + "\n")
            self._file.flush()
            if self._board:
                finite = {f"{kind}/{n}": x for n, x in numbers.items() if math.isfinite(x)}
                self._board.write(int(step), finite)

    def close(self) -> None:
        """Closes the file and the board; may be called again.

        Raises:
          UserError: if what a failed `write` left cannot be written now either.
        """
        try:
            with writing(self.path):
                self._file.close()
        finally:
            if self._board:
                self._board.close()


def _kept(path: Path, step: int) -> tuple[str, set[tuple[int, str]], bool]:
    """A log without the lines of later steps: text, (step, kind) of its lines, and if it lost any.

    Raises UserError for a line that is not of a log.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = []
    found = set()
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break  # cut off by a kill; a whole line ends in a newline
        try:
            values = parse_json(line)
            line_step = checked(values["step"], int, "step")
            kind = checked(values["kind"], str, "kind")
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise UserError(
                f"Line {number} of {path} is not a line of metrics; fix it, or move the file away."
            ) from error
        if line_step <= step:
            kept.append(line)
            found.add((line_step, kind))
    return "".join(kept), found, len(kept) < len(lines)
