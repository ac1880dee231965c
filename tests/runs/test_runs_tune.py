"""`dba tune` on a run that was really trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

from runs_tiny import dba  # noqa: E402

from dba_core.cache.bytes import bytes_per_token  # noqa: E402
from dba_core.config.kv_policy import KVCachePolicy  # noqa: E402
from dba_core.config.run import RunConfig  # noqa: E402


def run_of(tiny) -> str:
    return str(tiny.folder.path)


def test_a_gate_gives_a_policy_that_keeps_it(tiny, tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = dba("tune", run_of(tiny), "--max-delta-nll", "0.001", "--tokens", "128", "--json", "--plot",
               "--out", str(out))  # fmt: skip
    assert done.code == 0, done.err
    document = done.json
    assert json.loads((out / "tune.json").read_text(encoding="utf-8")) == document
    assert (out / "tune.png").stat().st_size > 10_000
    search = document["search"]
    chosen = next(each for each in search["tried"] if each["policy"] == search["chosen"])
    assert chosen["good"]
    assert max(chosen["measured"]["kl"], chosen["measured"]["delta_nll"]) <= 0.001
    assert document["tokens"] == chosen["measured"]["tokens"] == 128
    assert {single["tensor"] for single in search["singles"]} == {"k_sem", "k_geo", "v"}
    smaller = [each for each in search["tried"] if each["bytes_per_token"] < chosen["bytes_per_token"]]
    assert not any(each["good"] for each in smaller)
    again = dba("eval", run_of(tiny), "--kv-policy", search["chosen"], "--json")
    assert again.code == 0, again.err


def test_a_budget_is_kept_and_the_residual_window_is_extra(tiny) -> None:
    done = dba("tune", run_of(tiny), "--budget-bytes", "80", "--tokens", "64", "--resid", "4")
    assert done.code == 0, done.err
    assert "at most 80 bytes per token" in done.out
    assert "resid=4" in done.out
    assert "The residual window takes" in done.out
    line = next(line for line in done.out.splitlines() if "--kv-policy" in line)
    policy = KVCachePolicy.parse(line.split('"')[1])
    config = RunConfig.from_dict(json.loads(tiny.folder.config_file.read_text(encoding="utf-8")))
    assert policy.residual == 4
    assert 2 * bytes_per_token(config.model.attention.shape, policy) <= 80


def test_what_cannot_be_had_is_said_with_exit_code_1(tiny) -> None:
    small = dba("tune", run_of(tiny), "--budget-bytes", "3", "--tokens", "32")
    assert small.code == 1
    assert "the smallest that can be made takes" in small.err
    exact = dba("tune", run_of(tiny), "--max-delta-nll", "1e-12", "--budget-bytes", "70", "--tokens", "32")
    assert exact.code == 1
    assert "the best of those measured loses" in exact.err


def test_a_search_without_a_goal_is_a_usage_error(tiny) -> None:
    done = dba("tune", run_of(tiny))
    assert done.code == 2
    assert "--max-delta-nll" in done.err
