"""`dba tune` on a run that was really trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from runs_tiny import POLICY, dba

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.report import SilentReporter
from dba_core.runs.choosing import RunChoice
from dba_core.runs.load import load_run
from dba_plugins.tune.measure import tune_run
from dba_plugins.tune.plot import chart_title
from dba_plugins.tune.request import TuneRequest
from dba_plugins.tune.search import bytes_text

pytestmark = pytest.mark.torch


def run_of(tiny) -> str:
    return str(tiny.folder.path)


def test_a_gate_gives_a_policy_that_keeps_it(tiny, tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = dba("tune", run_of(tiny), "--max-delta-nll", "0.001", "--tokens", "128", "--json", "--plot",
               "--save", str(out))  # fmt: skip
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


def test_a_budget_is_for_the_target_context_with_the_window(tiny) -> None:
    run = load_run(tiny.folder.path)
    args = ["--budget-bytes", "80", "--tokens", "64", "--resid", "4", "--target-context", "2000"]
    done = dba("tune", run_of(tiny), *args)
    assert done.code == 0, done.err
    assert "at most 80 bytes per token" in done.out
    assert "a budget is for 2,000" in " ".join(done.out.split())
    line = next(line for line in done.out.splitlines() if "--kv-policy" in line)
    policy = KVCachePolicy.parse(line.split('"')[1])
    assert policy.residual == 4
    made = run.model.new_cache(batch=1, capacity=2000, policy=policy)
    assert made.nbytes <= 80 * 2000
    at_own = run.model.new_cache(batch=1, capacity=16, policy=policy).nbytes / 16
    assert at_own > 80, "the same policy takes more where the window is shared by 16 tokens"
    chosen = next(line for line in done.out.splitlines() if line.startswith("- chosen:"))
    assert f"{bytes_text(at_own)} bytes per token at 16 tokens" in chosen
    assert f"{bytes_text(made.nbytes / 2000)} bytes per token at 2,000 tokens" in chosen


def test_the_runs_own_policy_and_window_take_part(tiny, tmp_path: Path) -> None:
    run = load_run(tiny.folder.path)
    args = ["--max-delta-nll", "5", "--tokens", "64", "--target-context", "4096", "--plot", "--json"]
    document = dba("tune", run_of(tiny), *args, "--save", str(tmp_path)).json
    assert document["own_policy"] == POLICY
    assert (document["run_context"], document["target_context"]) == (16, 4096)
    tried = {each["policy"]: each for each in document["search"]["tried"]}
    assert tried[POLICY]["residual"] == 4
    assert tried[POLICY]["measured"] == document["own"]
    assert tried[POLICY]["good"]
    assert {single["residual"] for single in document["search"]["singles"]} == {0, 4}
    assert any("resid=32 is left out: it covers all 16 tokens" in note for note in document["notes"])
    for policy, each in tried.items():
        assert "resid=" in policy
        for context, whole, part in ((16, "bytes_run_context", "bytes_per_token_at_run_context"),
                                     (4096, "bytes_target", "bytes_per_token")):  # fmt: skip
            nbytes = run.model.new_cache(batch=1, capacity=context, policy=policy).nbytes
            assert each[whole] == nbytes
            assert each[part] == nbytes / context


def test_the_own_policy_is_chosen_where_nothing_smaller_is_good_enough(tiny) -> None:
    own = dba("tune", run_of(tiny), "--budget-bytes", "9999", "--tokens", "64", "--json").json
    kl, size = own["own"], own["own_sizes"]["bytes_per_token"]
    cost = max(kl["kl"], kl["delta_nll"])
    args = ["--max-delta-nll", str(cost), "--budget-bytes", str(math.ceil(size)), "--tokens", "64"]
    found = dba("tune", run_of(tiny), *args, "--resid", "4", "--json").json["search"]
    chosen = next(each for each in found["tried"] if each["policy"] == found["chosen"])
    assert chosen["bytes_per_token"] <= size, "the run's own keeps the goal, so what is chosen is no larger"


def test_a_window_that_hides_the_formats_is_refused(tiny) -> None:
    args = ["--budget-bytes", "80", "--tokens", "64", "--resid", "0,16"]
    done = dba("tune", run_of(tiny), *args, "--target-context", "64")
    assert done.code == 2
    assert "--resid 16 covers all 16 tokens that are measured at once" in " ".join(done.err.split())
    wrong = dba("tune", run_of(tiny), *args[:-1], "some")
    assert wrong.code == 2
    assert "'some' is no whole number >= 0" in wrong.err


def test_the_picture_says_both_sizes(tiny) -> None:
    run = load_run(tiny.folder.path)
    request = TuneRequest(run=RunChoice(run=run_of(tiny)), budget_bytes=200, tokens=32, target_context=8192)
    report = tune_run(run, request, SilentReporter())
    first, second = chart_title(report, name="tiny").splitlines()
    assert first == "tiny: at most 200 bytes per token"
    assert second.startswith(f"chosen {report.chosen.short}: ")
    assert second.endswith("bytes per token at 8,192 tokens")
    assert "bytes per token at 16 tokens, " in second


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
