"""A plugin that supports a request may say why the next of `auto`'s order is better for it."""

from __future__ import annotations

import pytest
from fake_site import GOOD_GATE, FakeSite, RequestOn

from dba_cli.commands.plugins.why import explain_others
from dba_core.registry import refuse_fallbacks

MODEST = GOOD_GATE.replace(
    "return Support.yes()",
    'return Support((), (Reason(subject="rows", got="1", supported="8 or more", action="Split them."),))',
)
CUDA_GATE = GOOD_GATE.replace('== "cpu"', '== "cuda"').replace('supported="cpu"', 'supported="cuda"')


@pytest.fixture
def ordered(site: FakeSite) -> FakeSite:
    """modest, which stands back, before next, which the tests add."""
    assert "rows" in MODEST
    site.gate("modest", distribution="d-modest", source=MODEST)
    site.module("some_order", 'ORDER = {"gate": ("modest", "next")}')
    site.distribution("d-order", {"dba.auto_order": {"order": "some_order:ORDER"}})
    return site


def test_the_next_one_runs_and_it_is_said_why(ordered: FakeSite, request_on: RequestOn) -> None:
    ordered.gate("next", distribution="d-next")
    registry = ordered.registry()
    selection = registry.select("gate", "auto", request_on())
    assert selection.name == "next"
    assert selection.why == "auto: better for the request than modest, which supports it too"
    (passed,) = selection.passed_over
    assert str(passed) == "modest: rows: got 1; supported: 8 or more. Split them."
    (other,) = explain_others(registry, selection)
    assert other["state"] == "passed over"
    assert other["why"] == "it supports the request, but rows: got 1; supported: 8 or more. Split them."


def test_that_is_no_fallback(ordered: FakeSite, request_on: RequestOn) -> None:
    ordered.gate("next", distribution="d-next")
    selection = ordered.registry().select("gate", "auto", request_on())
    assert selection.fallbacks == ()
    refuse_fallbacks([("gate", selection)])


def test_it_runs_where_the_next_one_does_not(ordered: FakeSite, request_on: RequestOn) -> None:
    ordered.gate("next", distribution="d-next", source=CUDA_GATE)
    selection = ordered.registry().select("gate", "auto", request_on())
    assert selection.name == "modest"
    assert selection.passed_over == ()


def test_it_runs_where_it_is_the_last_or_chosen_by_name(ordered: FakeSite, request_on: RequestOn) -> None:
    ordered.module("some_order", 'ORDER = {"gate": ("modest",)}')
    assert ordered.registry().select("gate", "auto", request_on()).name == "modest"
    assert ordered.registry().select("gate", "modest", request_on()).why == "chosen by name"
