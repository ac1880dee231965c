"""Each broken summarizer, gate, null token and options class fails the check that is made for it."""

from __future__ import annotations

import pytest
from broken_plugins import modules as broken

from dba_core.testing import check_plugin

pytestmark = pytest.mark.torch

SOUND = [("summarizer", broken.Learned), ("gate", broken.CausalGate), ("null_token", broken.LearnedNull)]
CASES = [
    ("summarizer", broken.LeaksNextBlock, "each_block_alone", "other values at (row, block) [[0, 0]]"),
    ("summarizer", broken.LeaksNextBlock, "gradient_stays_in_block", "some to blocks [2]"),
    ("summarizer", broken.LeaksNextBlock, "chunks_equal_whole", "k_mem block by block"),
    ("summarizer", broken.ReturnsList, "output_form", "returned list, no tuple of two tensors"),
    ("summarizer", broken.NotMeanAtStart, "mean_at_start", "the mean as k_mem"),
    ("summarizer", broken.Detached, "gradcheck", "gradcheck passes"),
    ("summarizer", broken.UnusedParameter, "parameters_have_gradients", "none for spare"),
    ("summarizer", broken.MutatesTokens, "changes_no_input", "k_sem was changed in place"),
    ("summarizer", broken.Dropout, "deterministic", "the same bits every time"),
    ("summarizer", broken.ForgetsState, "state_dict_round_trip", "another k_mem and v_mem"),
    ("gate", broken.LeaksNextToken, "each_token_alone", "token 1 of row 0 changed"),
    ("gate", broken.LeaksNextToken, "gradient_stays_in_token", "some to tokens [2]"),
    ("gate", broken.LeaksNextToken, "streaming_equals_whole", "g token by token"),
    ("gate", broken.NotNeutral, "neutral_at_start", "g = 0.5"),
    ("gate", broken.Unbounded, "output_form", "g within [0,1]"),
    ("null_token", broken.OneNullPerQueryHead, "output_form", "k_sem [2, 3]"),
    ("null_token", broken.DriftingNull, "deterministic", "outputs that differ"),
]


def failed(kind, plugin) -> dict[str, str]:
    """The failed checks with the text of their violations."""
    report = check_plugin(kind, plugin)
    return {r.name: "\n".join(map(str, r.violations)) for r in report.results if not r.ok}


@pytest.mark.parametrize(("kind", "module"), SOUND, ids=[case[0] for case in SOUND])
def test_the_sound_ones_that_they_are_made_from_pass(kind, module) -> None:
    assert failed(kind, broken.ModulePlugin(module)) == {}


@pytest.mark.parametrize(
    ("kind", "module", "check", "text"), CASES, ids=[f"{case[1].__name__}-{case[2]}" for case in CASES]
)
def test_fails_for_the_right_reason(kind, module, check: str, text: str) -> None:
    found = failed(kind, broken.ModulePlugin(module))
    assert check in found, found
    assert text in found[check], found[check]


def test_a_leak_of_the_future_is_all_that_fails() -> None:
    found = failed("gate", broken.ModulePlugin(broken.LeaksNextToken))
    assert set(found) == {"each_token_alone", "gradient_stays_in_token", "streaming_equals_whole"}


def test_options_that_come_back_changed() -> None:
    plugin = broken.ModulePlugin(broken.CausalGate, options_class=broken.LossyOptions)
    found = failed("gate", plugin)
    assert set(found) == {"options_round_trip"}
    assert "expected LossyOptions(rate=0.5); got LossyOptions(rate=0.25)" in found["options_round_trip"]


def test_options_that_can_change() -> None:
    plugin = broken.ModulePlugin(broken.CausalGate, options_class=broken.MutableOptions)
    found = failed("gate", plugin)
    assert set(found) == {"options_round_trip"}
    assert "MutableOptions, which has no hash" in found["options_round_trip"]


def test_a_summary_of_two_lines() -> None:
    plugin = broken.ModulePlugin(broken.CausalGate)
    plugin.summary = "one\ntwo"
    assert set(failed("gate", plugin)) == {"well_formed"}


def test_something_that_is_no_module() -> None:
    found = failed("gate", broken.ModulePlugin(lambda request: "a gate"))
    assert "expected an nn.Module; got str" in found["output_form"]
