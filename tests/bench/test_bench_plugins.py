"""`dba bench plugins`: every installed plugin of the three kinds has a row, or a note that says why not."""

from __future__ import annotations

import pytest

from dba_core.registry import Registry
from dba_core.report import SilentReporter
from dba_plugins.bench import plugins

pytestmark = pytest.mark.torch


def test_every_plugin_has_a_row_or_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "TOKENS", 128)
    report = plugins.run(plugins.PluginsBench(repeats=2), SilentReporter())
    found = {(row["kind"], row["name"]) for row in report.rows}
    for info in Registry.default().list():
        if info.kind in ("summarizer", "gate", "null_token"):
            noted = any(note.startswith(f"{info.kind} {info.name} ") for note in report.notes)
            assert noted != ((info.kind, info.name) in found), info
    counts = {(row["kind"], row["name"]): row["parameters"] for row in report.rows}
    assert counts["summarizer", "mean"] == 0
    assert counts["gate", "static"] == 8
    assert counts["gate", "causal"] == 8 + 8 * 512
    assert counts["null_token", "learned"] == 8 * (32 + 64 + 64)
