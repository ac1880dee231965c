"""Each broken weight format fails the check that is made for it."""

from __future__ import annotations

import attrs
import pytest
from broken_plugins import weight_formats as broken

from dba_core.testing import check_plugin

pytestmark = pytest.mark.torch

CASES = [
    (broken.OneScale, "rows_on_their_own", "louder rows beside"),
    (broken.ForgetsTheScale, "product_of_the_values", "an error of at most"),
    (broken.RoundsX, "any_x", "an error of at most"),
    (broken.RoundsX, "rows_on_their_own", "the same first row"),
    (broken.AlwaysFloat32, "product_of_the_values", "float16"),
    (broken.NoLeadingDimensions, "product_of_the_values", "expected [2, 3, "),
    (broken.WritesIntoX, "product_of_the_values", "x as it was"),
    (broken.NextRow, "round_trip", "relative L2 error"),
    (broken.HalfRows, "round_trip", "float32"),
    (broken.KeepsFloats, "size_as_stated", "bits per value"),
    (broken.Turned, "size_as_stated", "shape (33, 130)"),
    (broken.ScalesTheWeight, "round_trip", "the weight as it was"),
    (broken.CannotBeCopied, "looked_up", "a deep copy"),
    (broken.CannotBePickled, "looked_up", "a pickle"),
    (broken.Random, "looked_up", "the same again"),
    (broken.Raises, "product_of_the_values", "no such row"),
    (broken.NoProduct, "round_trip", "a PackedWeight"),
]


def failed(plugin) -> dict[str, str]:
    """The failed checks with the text of their violations."""
    report = check_plugin("weight_format", plugin, quick=True)
    return {r.name: "\n".join(map(str, r.violations)) for r in report.results if not r.ok}


def test_the_sound_one_that_they_are_made_from_passes() -> None:
    assert failed(broken.FormatPlugin(broken.Bytes)) == {}


@pytest.mark.parametrize(
    ("weight", "check", "text"), CASES, ids=[f"{case[0].__name__}-{case[1]}" for case in CASES]
)
def test_fails_for_the_right_reason(weight, check: str, text: str) -> None:
    found = failed(broken.FormatPlugin(weight))
    assert check in found, found
    assert text in found[check], found[check]


@pytest.mark.parametrize(("change", "check"), [({"round_trip_error": 1e-3}, "round_trip"),
                                               ({"product_error": 1e-9}, "product_of_the_values"),
                                               ({"bits": 7.0}, "size_as_stated")])  # fmt: skip
def test_facts_that_are_not_true(change, check: str) -> None:
    plugin = broken.FormatPlugin(broken.Bytes, facts=attrs.evolve(broken.FACTS, **change))
    assert check in failed(plugin)


def test_no_facts_at_all() -> None:
    found = failed(broken.FormatPlugin(broken.Bytes, facts={"bits": 8}))
    assert "expected a WeightFacts" in found["round_trip"]
