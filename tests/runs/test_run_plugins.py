"""Block lists, allow lists and traces in a run and in what is done with it later."""

from __future__ import annotations

from collections import Counter

import pytest
from runs_tiny import dba

pytestmark = pytest.mark.torch


def test_auto_passes_over_what_is_blocked_and_strictness_allows_it(inputs) -> None:
    done = dba("run", *inputs, "--dry-run", "--json", "--no-plugin", "gate=causal", "--strict")
    assert done.code == 0, done.err
    gate = done.json["plugins"]["gate"]
    assert gate["name"] == "none"
    assert gate["why"] == "auto: first that supports the request, after causal"
    assert gate["passed_over"] == ["causal: blocked by Access(blocked=['gate=causal'])"]
    refused = dba("run", *inputs, "--dry-run", "--no-plugin", "causal", "--plugin", "gate=causal")
    assert refused.code == 4
    assert "it is blocked by --no-plugin causal. Change that, or choose another gate." in refused.err


def test_the_allow_list_holds_for_a_run(inputs, monkeypatch) -> None:
    monkeypatch.setenv(
        "DBA_PLUGINS_ALLOW", "gate=static, summarizer=mean, null_token=none, decode_backend=streaming"
    )
    refused = dba("run", *inputs, "--dry-run")
    assert refused.code == 4
    allowed = "gate=static,summarizer=mean,null_token=none,decode_backend=streaming"
    assert f"(causal: not in the allow list DBA_PLUGINS_ALLOW={allowed}; none:" in refused.err
    assert "Allow one of them, or choose another gate by name." in refused.err
    allowed = dba(
        "run", *inputs, "--dry-run", "--json", "--plugin", "gate=static", "--plugin", "summarizer=mean"
    )
    assert allowed.code == 0, allowed.err
    assert {kind: facts["name"] for kind, facts in allowed.json["plugins"].items()} == {
        "summarizer": "mean",
        "gate": "static",
        "null_token": "none",
        "decode_backend": "streaming",
    }


@pytest.mark.parametrize("command", [["eval"], ["sample", "--prompt", "7"], ["drift"], ["run", "--resume"]])
def test_a_blocked_plugin_is_refused_for_a_finished_run(tiny, command: list[str]) -> None:
    done = dba(*command, str(tiny.folder.path), "--no-plugin", "causal")
    assert done.code == 4
    assert "gate 'causal' of dba-attention " in done.err
    assert "blocked by --no-plugin causal" in done.err


def test_a_trace_shows_what_was_done_with_every_plugin(inputs) -> None:
    done = dba("run", *inputs, "--dry-run", "--json", "--trace-plugins")
    assert done.code == 0
    assert done.json["plugins"]["gate"]["name"] == "causal"
    events = [line.removeprefix("trace: ") for line in done.err.splitlines() if " total of " not in line]
    counts = Counter(" ".join(line.split()[:3]) for line in events)
    assert counts["gate dba-attention:causal: import"] == counts["gate dba-attention:causal: hook"] == 1
    assert counts["gate dba-attention:causal: build"] == 2, "one for each layer"
    totals = [
        line
        for line in done.err.splitlines()
        if line.startswith("trace: total of gate dba-attention:causal: ")
    ]
    assert len(totals) == 1
    assert "build 2x" in totals[0]


def test_a_trace_of_a_finished_run(tiny) -> None:
    done = dba("eval", str(tiny.folder.path), "--json", "--trace-plugins")
    assert done.json["checkpoint"] == "best"
    assert "trace: decode_backend dba-attention:cpu: supports " in done.err
