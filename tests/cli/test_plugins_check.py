"""`dba plugins check`: the report, its JSON, and the exit codes of a broken promise and of no plugin."""

from __future__ import annotations

import json

import pytest
from fake_site import GOOD_GATE, empty_site

pytestmark = pytest.mark.torch


def test_a_broken_promise_is_exit_code_1_with_case_and_hint(dba) -> None:
    with empty_site() as site:
        site.gate("texty", distribution="texty-gate", source=GOOD_GATE)
        done = dba("plugins", "check", "texty")
    assert done.code == 1
    assert "output_form\n  case      H4 G2 Ds4 Dg4 Dv4, float32, cpu, x [2, 0, 8]\n" in done.out
    assert "  expected  an nn.Module\n  got       str\n" in done.out
    assert "hint      Subclass torch.nn.Module, so that the model can move, save and train it." in done.out
    assert " checks failed." in done.out


def test_json_holds_every_violation_as_data(dba) -> None:
    with empty_site() as site:
        site.gate("texty", distribution="texty-gate", source=GOOD_GATE)
        done = dba("plugins", "check", "texty", "--json")
    document = json.loads(done.out)
    assert (done.code, document["ok"], document["distribution"]) == (1, False, "texty-gate")
    found = {v["check"] for result in document["results"] for v in result["violations"]}
    assert {"output_form", "gradcheck"} <= found
    assert "well_formed" not in found


def test_what_a_plugin_declines_is_listed_with_its_reason(dba) -> None:
    done = dba("plugins", "check", "mean")
    assert done.code == 0, done.out
    declined = [line for line in done.out.splitlines() if line.startswith("Declined ")]
    assert any("dtype: got float16; supported: float32 or bfloat16." in line for line in declined)


def test_a_plugin_that_is_not_there_or_cannot_be_imported_is_exit_code_4(dba) -> None:
    missing = dba("plugins", "check", "casual")
    assert missing.code == 4
    assert "Did you mean 'causal'" in missing.err
    with empty_site() as site:
        site.gate("gone", distribution="gone-gate", source="import a_module_that_nobody_has\n")
        broken = dba("plugins", "check", "gone")
    assert broken.code == 4
    assert "a_module_that_nobody_has" in broken.err


def test_a_device_that_is_not_there_is_a_usage_error(dba) -> None:
    done = dba("plugins", "check", "causal", "--device", "tpu7")
    assert done.code == 2
    assert "device 'tpu7' cannot be used here" in done.err
