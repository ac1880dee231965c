"""Limits, table and labels of a drift report: what is above a limit, and how that is said. No torch."""

from __future__ import annotations

import json
import math

import attrs
import pytest

from dba_core.errors import UsageError
from dba_core.report import as_plain
from dba_core.runs.evaluate import LongSequenceNumbers
from dba_plugins.drift.findings import (
    HEADER,
    CurvePoint,
    DriftFigures,
    DriftFindings,
    DriftOfSetting,
    JudgedThreshold,
    fact_rows,
    setting_rows,
)
from dba_plugins.drift.request import NAMES, Threshold, parse_threshold

pytestmark = pytest.mark.torch

ZERO = DriftFigures(delta_nll=0.0, ppl_ratio=1.0, max_abs_logit=0.0, kl=0.0, exact_nll=2.0, tokens=40)


def setting(*, block: int = 8, delta: float = 0.1, exact: bool = False) -> DriftOfSetting:
    figures = attrs.evolve(ZERO, delta_nll=delta, ppl_ratio=math.exp(delta), kl=delta / 10, max_abs_logit=3.0)
    beyond = attrs.evolve(figures, delta_nll=2 * delta, kl=delta / 5, tokens=20)
    return DriftOfSetting(
        numbers=LongSequenceNumbers(
            summarizer="mean", mem_block=block, local_window=8, q_chunk=4, mass_correction=True
        ),
        exact=exact,
        first_memory_position=None if exact else 10,
        keys_per_query=7.25,
        all=ZERO if exact else figures,
        beyond_window=None if exact else beyond,
        documents=(figures, figures),
        curve=(CurvePoint(start=0, stop=20, figures=figures),),
    )


def report(*settings: DriftOfSetting, limits: tuple[Threshold, ...] = ()) -> DriftFindings:
    return DriftFindings(
        run="runs/x",
        checkpoint="best",
        checkpoint_step=7,
        data={"name": "song.txt"},
        part="held-out",
        context=16,
        trained_with="exact attention",
        length=20,
        offsets=(0, 20),
        tokens=40,
        device="cpu",
        dtype="float32",
        exact_nll=2.0,
        exact_keys_per_query=10.5,
        settings=settings,
        thresholds=tuple(JudgedThreshold.of(limit, settings) for limit in limits),
        notes=(),
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_can_be_limited(name: str) -> None:
    value = setting().value(name)
    assert value is not None
    assert parse_threshold(f" {name} = {value!r} ") == Threshold(name, value)
    at, below = Threshold(name, value), Threshold(name, value - 1e-9)
    assert JudgedThreshold.of(at, [setting()]).exceeded_by == ()
    assert JudgedThreshold.of(below, [setting()]).exceeded_by == (0,)


def test_beyond_the_window_is_another_number() -> None:
    one = setting(delta=0.1)
    assert (one.value("delta_nll"), one.value("beyond_window.delta_nll")) == (0.1, 0.2)
    assert setting(exact=True).value("beyond_window.kl") is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("delta_nl=0.1", "Did you mean 'delta_nll'"),
        ("beyond.kl=0.1", "'beyond_window.kl'"),
        ("delta_nll", "write it as in --fail-above delta_nll=0.05"),
        ("kl=", "'' is no finite number"),
        ("kl=small", "'small' is no finite number"),
        ("kl=nan", "no finite number"),
        ("kl=inf", "no finite number"),
    ],
)
def test_a_wrong_limit_is_a_usage_error(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_threshold(text)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_error_names_each_limit_with_its_worst_setting() -> None:
    settings = (setting(block=4, delta=0.01), setting(block=8, delta=0.3), setting(block=16, delta=0.2))
    limits = (Threshold("delta_nll", 0.05), Threshold("kl", 5.0), Threshold("beyond_window.kl", 0.05))
    made = report(*settings, limits=limits)
    assert [each.exceeded_by for each in made.thresholds] == [(1, 2), (), (1,)]
    text = made.failed or ""
    assert "delta_nll 0.3 is above 0.05 with summarizer mean, mem_block 8," in text
    assert "(and 1 more setting)" in text
    assert "beyond_window.kl 0.06 is above 0.05" in text
    assert "kl 0.3 is" not in text


def test_no_error_below_the_limits_and_none_without_positions_beyond_the_window() -> None:
    limits = (Threshold("delta_nll", 0.0), Threshold("beyond_window.delta_nll", -1.0))
    assert report(setting(exact=True), limits=limits).failed is None
    assert report(setting(delta=-0.2), limits=limits[:1]).failed is None
    above = report(setting(exact=True), limits=(Threshold("delta_nll", -1.0),)).failed
    assert above is not None
    assert "delta_nll 0 is above -1" in above


def test_nan_is_above_every_limit_and_null_in_json() -> None:
    made = report(setting(), setting(delta=math.nan), limits=(Threshold("kl", 1e9),))
    assert made.thresholds[0].exceeded_by == (1,)
    assert "kl nan is above" in (made.failed or "")
    plain = json.loads(json.dumps(as_plain(made), allow_nan=False))
    assert plain["settings"][1]["all"]["kl"] is None


def test_the_table_has_two_lines_a_setting_and_one_where_nothing_is_beyond_the_window() -> None:
    rows = list(setting_rows(report(setting(delta=0.1), setting(exact=True))))
    assert [len(row) for row in rows] == [len(HEADER)] * 3
    assert rows[0] == (
        "mean", "on", "8", "8", "4", "7.2", "all 20", "+0.10000", "1.10517", "1.000e-02", "3",
    )  # fmt: skip
    assert rows[1][:7] == ("",) * 6 + ("from 10",)
    assert rows[1][7] == "+0.20000"
    assert rows[2][6:] == ("all 20", "+0.00000", "1.00000", "0", "0")
    about = dict(fact_rows(report(setting())))
    assert about["Text"] == "song.txt (held-out): 2 documents of 20 positions"
    assert about["Exact attention"] == "loss 2.0000 nats per token, 10.5 keys/query"


def test_a_line_of_the_picture_is_labelled_by_what_differs() -> None:
    plot = pytest.importorskip("dba_plugins.drift.plot")
    assert plot.setting_labels([setting(block=4), setting(block=8)]) == ["block 4", "block 8"]
    assert plot.setting_labels([setting()]) == ["mean, block 8, window 8, chunk 4, mass correction on"]
