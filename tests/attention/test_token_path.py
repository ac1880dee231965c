"""How many files one token meets: the limits of docs/gen/token_path.py, and that it counts what is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).parents[2] / "docs" / "gen" / "token_path.py"
spec = importlib.util.spec_from_file_location("token_path", SCRIPT)
assert spec is not None
assert spec.loader is not None
token_path = importlib.util.module_from_spec(spec)
spec.loader.exec_module(token_path)


@pytest.fixture(scope="module")
def ways() -> dict[str, tuple[str, ...]]:
    return token_path.ways(backend="streaming")


@pytest.mark.needs("llvmlite")
def test_a_token_meets_few_files() -> None:
    ways = token_path.ways(backend="cpu")
    limits = {"training": 6, "long path": 10, "prefill": 10, "decode": 10}
    assert limits == token_path.LIMITS
    assert {way: files for way, files in ways.items() if len(files) > limits[way]} == {}
    assert "dba_plugins/decode/cpu/backend.py" in ways["prefill"]


def test_the_files_are_those_of_the_way(ways: dict[str, tuple[str, ...]]) -> None:
    module, long = "dba_core/attention/module.py", "dba_core/attention/long_sequence/attention.py"
    assert all(module in files for files in ways.values())
    assert [way for way, files in ways.items() if long in files] == ["long path"]
    assert "dba_plugins/summarizers/mean.py" in ways["long path"]
    assert "dba_plugins/decode/streaming.py" in ways["decode"]
