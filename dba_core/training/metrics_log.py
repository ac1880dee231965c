"""`metrics.jsonl`: one JSON object per logged training step and per evaluation, in the order in which they
happened.

    {"kind": "train", "step": 10, "loss": 5.1, "lr": 0.0004, "grad_norm": 1.2, "tokens": 7680,
     "tokens_per_second": 21000.0, "seconds": 0.4}
    {"kind": "eval", "step": 100, "loss": 3.2, "perplexity": 24.5, "tokens": 8192, "seconds": 0.3,
     "is_best": true}

A number that is not finite is written as null. A resumed run drops the lines past the step that it resumes
from, so the file reads as if the run had never stopped. Called by training.loop on the main process.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType

from dba_core.errors import CheckpointError

Value = float | int | bool | str | None


def read_metrics(path: Path) -> list[dict[str, Value]]:
    """All lines of the file. A last line that a crash cut short is left out; any other broken line is an
    error.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, Value]] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise CheckpointError(
                f"{path} line {number} is not JSON ({error.msg}); repair or delete it, then resume"
            ) from None
    return rows


class MetricsLog:
    """An open metrics file. Every line is flushed, so a reader sees it at once."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        """resume_step: None for a new run, whose file must not exist yet; else lines of later steps are
        dropped.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is None and path.exists():
            raise CheckpointError(
                f"{path} already holds the metrics of a run; resume that run or choose another folder"
            )
        if resume_step is not None and path.exists():
            _keep_until(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Value]) -> None:
        """Append one line."""
        self._file.write(_line(row))
        self._file.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Rewrite the file, whole or not at all, with the lines up to `step`."""
    kept = [row for row in read_metrics(path) if isinstance(row["step"], int) and row["step"] <= step]
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("".join(_line(row) for row in kept), encoding="utf-8")
    os.replace(fresh, path)


def _line(row: dict[str, Value]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
