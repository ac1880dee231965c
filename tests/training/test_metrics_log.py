"""metrics.jsonl: valid JSON whatever the numbers, and what resuming keeps of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dba_core.errors import CheckpointError
from dba_core.training.metrics_log import MetricsLog, read_metrics


def written(path: Path, *rows: dict, resume_step: int | None = None) -> None:
    with MetricsLog(path, resume_step=resume_step) as log:
        for row in rows:
            log.write(row)


def test_one_json_object_per_line_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"kind": "train", "step": 1, "loss": 5.25})
        assert read_metrics(path) == [{"kind": "train", "step": 1, "loss": 5.25}]
        log.write({"kind": "eval", "step": 1, "loss": 5.0, "is_best": True})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["train", "eval"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, {"kind": "train", "step": 1, "loss": value, "lr": 0.1})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == {
        "kind": "train",
        "step": 1,
        "loss": None,
        "lr": 0.1,
    }


def test_floats_come_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308]
    written(path, *({"kind": "train", "step": 1, "loss": value} for value in values))
    assert [row["loss"] for row in read_metrics(path)] == values


def test_a_new_run_does_not_touch_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, {"kind": "train", "step": 1, "loss": 1.0})
    with pytest.raises(CheckpointError, match="already holds"):
        MetricsLog(path)
    assert read_metrics(path) == [{"kind": "train", "step": 1, "loss": 1.0}]


def test_resuming_drops_the_lines_past_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, *({"kind": "train", "step": step, "loss": step / 3} for step in (1, 2, 3, 4)))
    before = path.read_text(encoding="utf-8").splitlines(keepends=True)
    written(path, {"kind": "train", "step": 3, "loss": 9.0}, resume_step=2)
    after = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert after[:2] == before[:2]
    assert [json.loads(line) for line in after[2:]] == [{"kind": "train", "step": 3, "loss": 9.0}]


def test_resuming_drops_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, {"kind": "train", "step": 1, "loss": 1.0}, {"kind": "train", "step": 2, "loss": 2.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 3, "lo')
    assert read_metrics(path) == [
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "train", "step": 2, "loss": 2.0},
    ]
    written(path, {"kind": "train", "step": 3, "loss": 3.0}, resume_step=2)
    assert read_metrics(path) == [
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "train", "step": 2, "loss": 2.0},
        {"kind": "train", "step": 3, "loss": 3.0},
    ]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "train", "step": 1, "loss": 1.0}\n{"kind": "train", "step": \n'
        '{"kind": "train", "step": 3, "loss": 3.0}\n',
        encoding="utf-8",
    )
    with pytest.raises(CheckpointError, match="line 2 is not valid JSON"):
        written(path, resume_step=3)


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, {"kind": "train", "step": 4, "loss": 4.0}, resume_step=3)
    assert read_metrics(path) == [{"kind": "train", "step": 4, "loss": 4.0}]
