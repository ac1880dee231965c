"""`--weights` of `dba eval` and `dba sample`: what ran is said, what it costs beside it, files stay."""

from __future__ import annotations

import hashlib

import pytest
from runs_tiny import dba

from dba_core.errors import PluginError
from dba_core.runs.load import load_run

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]


def evaluated(tiny, *args: str):
    done = dba("eval", str(tiny.folder.path), *args, "--json")
    assert done.code == 0, done.err
    return done.json


def test_the_evaluation_says_which_weights_ran_and_what_they_take(tiny) -> None:
    plain = evaluated(tiny)
    assert plain["weights"]["format"] is None
    found = {name: evaluated(tiny, "--weights", name) for name in ("auto", "fp32", "int8", "int4")}
    assert {name: each["weights"]["format"] for name, each in found.items()} == {
        "auto": "fp32",
        "fp32": "fp32",
        "int8": "int8",
        "int4": "int4",
    }
    sizes = [found[name]["weights"]["bytes"] for name in ("fp32", "int8", "int4")]
    assert plain["weights"]["bytes"] > sizes[1] > sizes[2]
    losses = {name: each["held_out"]["loss"] - plain["held_out"]["loss"] for name, each in found.items()}
    assert abs(losses["fp32"]) < 1e-5
    assert 0.0 < abs(losses["int8"]) < 0.01
    assert abs(losses["int8"]) < abs(losses["int4"]) < 0.3
    table = dba("eval", str(tiny.folder.path), "--weights", "int8").out
    assert "Weights" in table
    assert "int8, " in table


def test_sampling_takes_and_records_it_and_the_run_stays_as_it_is(tiny) -> None:
    def contents() -> dict[str, str]:
        files = (path for path in tiny.folder.path.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    args = ("sample", str(tiny.folder.path), "--prompt", "7 green", "--temperature", "0", "--json")
    plain, packed = dba(*args).json, dba(*args, "--weights", "fp32").json
    assert (plain["weights"], packed["weights"]) == (None, "fp32")
    assert packed["samples"] == plain["samples"]
    assert contents() == before


def test_wrong_formats_are_refused_by_name(tiny) -> None:
    done = dba("sample", str(tiny.folder.path), "--prompt", "7", "--weights", "int7")
    assert done.code == 4
    assert "unknown weight_format 'int7'. Did you mean 'int8'" in done.err
    done = dba("eval", str(tiny.folder.path), "--weights", "q8_0")
    assert "'q8_0' is no weight_format but a kv_format" in done.err


def test_in_python(tiny) -> None:
    run = load_run(tiny.folder.path, weights="int8")
    assert "int8 weights" in repr(run)
    assert run.warnings == load_run(tiny.folder.path).warnings
    with pytest.raises(PluginError, match="Allowed: auto, bf16, fp32, int4, int8"):
        load_run(tiny.folder.path, weights="int7")
