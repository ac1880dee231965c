"""Each broken cache format fails the check that is made for it."""

from __future__ import annotations

import attrs
import pytest
from broken_plugins import kv_formats as broken

from dba_core.testing import check_plugin

pytestmark = pytest.mark.torch

CASES = [
    (broken.Truncates, "stated_error", "as stated"),
    (broken.ScaleOfTheWholeToken, "outliers", "every value outside its block as before"),
    (broken.ScaleOfTheWholeToken, "each_value_close", "heads of unlike size"),
    (broken.ScaleOfTheWholeBatch, "each_token_alone", "token by token"),
    (broken.HalfScales, "outliers", "up to max_input"),
    (broken.AddsAnOffset, "zeros", "expected zeros"),
    (broken.AddsAnOffset, "denormals", "1e-30"),
    (broken.AddsAnOffset, "scale_invariance", "values differ"),
    (broken.ForgetsLastValue, "each_value_close", "heads of 5"),
    (broken.ScalesInFloat32, "planes_as_stated", "torch.bfloat16"),
    (broken.ChangesItsInput, "deterministic", "x was changed in place"),
    (broken.IsRandom, "deterministic", "once more"),
    (broken.ViewsItsInput, "dtypes_and_strides", "strided"),
    (broken.CannotBeCopied, "deterministic", "expected a copy"),
    (broken.Raises, "stated_error", "no such block"),
]


def failed(plugin) -> dict[str, str]:
    """The failed checks with the text of their violations."""
    report = check_plugin("kv_format", plugin, quick=True)
    return {r.name: "\n".join(map(str, r.violations)) for r in report.results if not r.ok}


def test_the_sound_one_that_they_are_made_from_passes() -> None:
    assert failed(broken.FormatPlugin(broken.Eight)) == {}


@pytest.mark.parametrize(
    ("codec", "check", "text"), CASES, ids=[f"{case[0].__name__}-{case[1]}" for case in CASES]
)
def test_fails_for_the_right_reason(codec, check: str, text: str) -> None:
    found = failed(broken.FormatPlugin(codec))
    assert check in found, found
    assert text in found[check], found[check]


@pytest.mark.parametrize(("change", "check"), [({"round_trip_error": 1e-3}, "stated_error"),
                                               ({"round_trip_error": 0.1}, "stated_error"),
                                               ({"code_dtype": "uint8"}, "planes_as_stated")])  # fmt: skip
def test_facts_that_are_not_true(change, check: str) -> None:
    plugin = broken.FormatPlugin(broken.Eight, facts=attrs.evolve(broken.FACTS, **change))
    assert check in failed(plugin)


def test_no_facts_at_all() -> None:
    found = failed(broken.FormatPlugin(broken.Eight, facts={"bits": 8}))
    assert "expected a FormatFacts" in found["facts_without_torch"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 6}, "fill no whole number of int8"),
        ({"default_qblock": 64}, "default_qblock=64"),
        ({"code_dtype": "int5"}, "code_dtype='int5'"),
        ({"tried": (64,)}, "tried="),
        ({"max_input": float("nan")}, "max_input=nan"),
    ],
)
def test_facts_that_cannot_be(change, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        attrs.evolve(broken.FACTS, **change)
