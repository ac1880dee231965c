"""The tutorial's steps have an effect: the summarizers that it swaps are really built."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dba_cli.main import main

pytestmark = pytest.mark.torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "first-run.md"


def test_the_summarizers_that_are_swapped_are_built(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^dba (run .*summarizer=\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    built = {}
    for line in lines:
        assert main([*shlex.split(line), "--dry-run", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["long_sequence"]["active"], line
        built[found["plugins"]["summarizer"]["name"]] = found["model"]["cost"]["parameters"]
    assert set(built) == {"mean", "conv"}
    assert built["conv"] > built["mean"], "conv has weights of its own"
