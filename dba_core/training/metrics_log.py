"""`metrics.jsonl`: one JSON object per logged training step and per evaluation, in the order in which they
happened.

    {"kind": "train", "step": 10, "loss": 5.1, "lr": 0.0004, "grad_norm": 1.2, "tokens": 7680,
     "tokens_per_second": 21000.0, "seconds": 0.4}
    {"kind": "eval", "step": 100, "loss": 3.2, "perplexity": 24.5, "tokens": 8192, "seconds": 0.3,
     "is_best": true}

A number that is not finite is written as null. A resumed run drops the lines past the step that it resumes
from, so the file reads as if the run had never stopped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from dba_core.documents import parse_object, read_text, write_whole
from dba_core.errors import CheckpointError

Row = dict[str, Any]  # numbers, texts, truth values and null

_KINDS = ("train", "eval")
_ADVICE = "Repair the line or delete the file, then resume"
_LIMIT = 1 << 34  # bytes; more than any run logs


def read_metrics(path: Path) -> list[Row]:
    """All lines of the file, none where there is no file. A last line that a crash cut short is left out; any
    other broken line is a CheckpointError.
    """
    if not path.is_file():
        return []
    text = read_text(path, error=CheckpointError, advice=_ADVICE, limit=_LIMIT)
    *lines, rest = text.split("\n")
    rows = [_row(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if rest.strip():
        with contextlib.suppress(CheckpointError):  # cut short
            rows.append(_row(rest, f"{path} line {len(lines) + 1}"))
    return rows


def _row(line: str, source: str) -> Row:
    row = parse_object(line, source=source, error=CheckpointError, advice=_ADVICE)
    kind, step, loss = row.get("kind"), row.get("step"), row.get("loss", "")
    is_loss = loss is None or (type(loss) in (int, float) and abs(loss) <= sys.float_info.max)
    if kind not in _KINDS or not is_count(step) or not is_loss:
        raise CheckpointError(
            f"{source} is no line of metrics: kind {ascii(kind)[:40]}, step {ascii(step)[:40]}, loss "
            f"{ascii(loss)[:40]}; allowed: kind {' or '.join(_KINDS)}, a step from 0 on, a number or null as "
            f"loss. {_ADVICE}"
        )
    return row


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """An open metrics file. Every line is written at once, whole or not at all, so a reader sees it."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        """resume_step: None for a new run, whose file must not exist yet; else lines of later steps are
        dropped. Raises CheckpointError where the file cannot be written.
        """
        self._path = path
        if resume_step is None and path.exists():
            raise CheckpointError(
                f"{path} already holds the metrics of a run; resume that run or choose another folder"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume_step is not None and path.exists():
                kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
                write_whole(path, "".join(map(_line, kept)))
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, row: Row) -> None:
        """Append one line. Raises CheckpointError when the disk refuses, or the folder is gone."""
        line = _line(row).encode()
        before = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise self._refused(error) from error
        if not self._path.exists():
            raise self._refused(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def _refused(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self._path} could not be written ({error.strerror or error}). Make room, or put the folder "
            "back and make it writable, then resume from the last checkpoint, or start again "
            "where there is none"
        )


def _line(row: Row) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def is_count(value: object) -> bool:
    """Whether this is a whole number from 0 on, and no truth value."""
    return type(value) is int and 0 <= value < 1 << 62
