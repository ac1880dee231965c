"""What the registry notes about each plugin: imports, hook calls, questions and builds, with their times."""

from __future__ import annotations

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_request

from dba_core.errors import PluginError
from dba_core.registry import Trace, TraceEvent

SLOW = "import time, acme_helper\ntime.sleep(0.02)\n" + GOOD_GATE


def actions(trace: Trace) -> list[tuple[str, str, str]]:
    return [(event.plugin, event.action, event.what) for event in trace.events]


def test_every_step_is_noted_in_order_and_told_at_once(site: FakeSite) -> None:
    site.module("acme_helper", "x = 1")
    site.gate("soft", distribution="acme", source=SLOW)
    told: list[TraceEvent] = []
    trace = Trace(told.append)
    registry = site.registry(trace=trace)
    registry.list()
    assert told == []
    registry.select("gate", "soft", gate_request()).build()
    assert actions(trace) == [
        ("gate acme:soft", "import", "acme_soft (2 new modules)"),
        ("gate acme:soft", "hook", "dba_gate() returned Gate"),
        ("gate acme:soft", "supports", "yes"),
        ("gate acme:soft", "build", "str"),
    ]
    assert told == trace.events
    assert trace.events[0].seconds >= 0.02
    assert str(trace.events[0]).startswith("gate acme:soft: import ")
    assert str(trace.events[0]).endswith(" ms, acme_soft (2 new modules)")


def test_a_plugin_is_imported_once_and_asked_again(site: FakeSite) -> None:
    site.gate("soft", distribution="acme")
    trace = Trace()
    registry = site.registry(trace=trace)
    for device in ("cpu", "cpu"):
        registry.select("gate", "soft", gate_request(device))
    totals = trace.totals()["gate acme:soft"]
    assert {action: count for action, (count, _) in totals.items()} == {"import": 1, "hook": 1, "supports": 2}
    assert totals["supports"][1] == sum(e.seconds for e in trace.events if e.action == "supports")


def test_without_end_the_newest_events_are_kept_and_all_are_counted(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dba_core.registry.trace.KEPT", 10)
    site.gate("soft", distribution="acme")
    told: list[TraceEvent] = []
    trace = Trace(told.append)
    registry = site.registry(trace=trace)
    for _ in range(50):
        registry.select("gate", "soft", gate_request())
    assert trace.events == told[-10:]
    count, seconds = trace.totals()["gate acme:soft"]["supports"]
    assert count == 50
    assert seconds == pytest.approx(sum(e.seconds for e in told if e.action == "supports"))


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("raise RuntimeError('boom')", ("import", "raised an error")),
        (GOOD_GATE.replace("return Gate()", "return 1 / 0"), ("hook", "raised an error")),
        (GOOD_GATE.replace("return Gate()", "return None"), ("hook", "dba_gate() returned nothing")),
    ],
)
def test_what_fails_is_noted_too(site: FakeSite, source: str, last: tuple[str, str]) -> None:
    site.gate("bad", distribution="acme", source=source)
    trace = Trace()
    with pytest.raises(PluginError):
        site.registry(trace=trace).load("gate", "bad")
    assert actions(trace)[-1] == ("gate acme:bad", *last)


def test_a_no_and_a_broken_answer(site: FakeSite) -> None:
    site.gate("soft", distribution="acme")
    site.gate(
        "bad", distribution="other", source=GOOD_GATE.replace("if request.device", "if request.nothing")
    )
    trace = Trace()
    registry = site.registry(trace=trace)
    for name in ("soft", "bad"):
        loaded = registry.load("gate", name)
        registry.ask(loaded, gate_request("cuda"), loaded.plugin.options_class())
    answers = [event.what for event in trace.events if event.action == "supports"]
    assert answers == [
        "no (device: got cuda; supported: cpu. Choose --device cpu.)",
        "AttributeError: 'GateRequest' object has no attribute 'nothing'",
    ]
