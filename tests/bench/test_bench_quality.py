"""`dba bench quality`: losses through the cache, differences to the fp32 cache, bytes, and the frontier."""

from __future__ import annotations

import math

import pytest

from dba_core.report import SilentReporter

pytestmark = pytest.mark.torch

CONTEXT, TOKENS = 24, 24 * 5 + 7
Q4 = "ksem=q4_0@8,kgeo=q4_0@8,v=q4_0@8,resid=0"
FP16 = "ksem=fp16,kgeo=fp16,v=fp16,resid=0"
COVERED = "ksem=q4_0@8,kgeo=q4_0@8,v=q4_0@8,resid=24"


@pytest.fixture(scope="module")
def model():
    from dba_core.config.attention import AttentionConfig
    from dba_core.config.model import ModelConfig
    from dba_core.model.language_model import LanguageModel

    attention = AttentionConfig(n_heads=4, sem_head_dim=4, geo_head_dim=8, v_head_dim=8)
    return LanguageModel(
        ModelConfig(vocab_size=29, n_layers=2, d_model=32, context=CONTEXT, attention=attention), seed=5
    ).eval()


@pytest.fixture(scope="module")
def text():
    import numpy as np

    return np.random.default_rng(1).integers(0, 29, 400).astype(np.uint16)


@pytest.fixture(scope="module")
def report(model, text):
    from dba_plugins.bench.quality import measure_quality

    return measure_quality(
        model,
        text,
        policies=(Q4, FP16, COVERED),
        context=CONTEXT,
        limit_tokens=TOKENS,
        name="toy",
        command="dba bench quality toy",
        reporter=SilentReporter(),
    )


def test_the_fp32_row_is_the_plain_held_out_loss(model, text, report):
    from dba_core.evaluation.metrics import held_out_loss

    plain = held_out_loss(model, text, context=CONTEXT, batch_size=3, limit_tokens=TOKENS)
    row = report.rows[0]
    assert row["policy"] == "ksem=fp32,kgeo=fp32,v=fp32,resid=0"
    assert row["nll"] == pytest.approx(plain.loss, rel=1e-5)
    assert row["tokens"] == plain.tokens == TOKENS
    assert row["windows"] == 6
    assert (row["delta_nll"], row["kl"], row["std_error"], row["perplexity_increase"]) == (0, 0, 0, 0)


def test_differences_are_those_of_decoding_token_by_token(model, text, report):
    from dba_core.evaluation.metrics import policy_fidelity

    row = report.rows[1]
    decoded = policy_fidelity(model, text, context=CONTEXT, policy=Q4, n_tokens=TOKENS, batch_size=2)
    assert row["delta_nll"] == pytest.approx(decoded.delta_nll, abs=1e-5)
    assert row["kl"] == pytest.approx(decoded.kl, rel=1e-2)
    assert row["perplexity_increase"] == pytest.approx(math.expm1(row["delta_nll"]))


def test_the_standard_error_is_that_of_the_mean_over_windows(model, text, report):
    import numpy as np

    from dba_plugins.bench.quality import measure_quality

    deltas = []
    for window in range(6):
        begin = window * CONTEXT
        alone = measure_quality(
            model,
            text[begin:],
            policies=(Q4,),
            context=CONTEXT,
            limit_tokens=min(CONTEXT, TOKENS - begin),
            name="toy",
            command="",
            reporter=SilentReporter(),
        ).rows[1]
        deltas.append(alone["delta_nll"])
        assert math.isnan(alone["std_error"])
    assert report.rows[1]["std_error"] == pytest.approx(np.std(deltas, ddof=1) / math.sqrt(6), rel=1e-6)


def test_bytes_per_token_are_those_of_the_cache_with_its_window(model, text, report):
    from dba_plugins.bench.quality import measure_quality

    for row in report.rows:
        made = model.new_cache(batch=1, capacity=CONTEXT, policy=row["policy"])
        assert row["bytes_per_token"] == made.nbytes / CONTEXT
    windowed = f"{Q4.removesuffix(',resid=0')},resid=8"
    (_, row) = measure_quality(
        model,
        text,
        policies=(windowed,),
        context=CONTEXT,
        limit_tokens=CONTEXT,
        name="toy",
        command="",
        reporter=SilentReporter(),
    ).rows
    made = model.new_cache(batch=1, capacity=CONTEXT, policy=windowed)
    assert row["bytes_per_token"] == made.nbytes / CONTEXT > report.rows[1]["bytes_per_token"]
    assert report.rows[0]["bytes_per_token"] == 2 * 4 * (4 * (4 + 8 + 8))  # layers, fp32, heads, widths


def test_the_frontier_holds_what_nothing_else_beats(report):
    for row in report.rows:
        others = [other for other in report.rows if other is not row]
        beaten = any(
            other["bytes_per_token"] <= row["bytes_per_token"]
            and other["kl"] <= row["kl"]
            and (other["bytes_per_token"] < row["bytes_per_token"] or other["kl"] < row["kl"])
            for other in others
        )
        assert row["frontier"] is not beaten
    assert any(row["frontier"] for row in report.rows)


def test_the_dozen_policies_go_from_fp32_to_all_q4_with_and_without_a_residual_window():
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_plugins.bench.quality import POLICIES

    policies = [KVCachePolicy.parse(text) for text in POLICIES]
    assert len(set(policies)) == len(policies) >= 12
    formats = {(p.k_sem.format, p.k_geo.format, p.v.format) for p in policies}
    assert {("fp32",) * 3, ("fp16",) * 3, ("q8_0",) * 3, ("q4_0",) * 3, ("nf4",) * 3} <= formats
    assert any(p.residual for p in policies)
    assert any(not p.residual for p in policies)


def test_a_text_of_one_token_is_refused(model, text):
    from dba_core.errors import DataError
    from dba_plugins.bench.quality import measure_quality

    with pytest.raises(DataError, match="give at least 2"):
        measure_quality(
            model, text[:1], context=8, limit_tokens=8, name="toy", command="", reporter=SilentReporter()
        )


def test_a_policy_that_cannot_be_read_is_refused(model, text):
    from dba_core.errors import ConfigError
    from dba_plugins.bench.quality import measure_quality

    with pytest.raises(ConfigError, match="cache format"):
        measure_quality(
            model,
            text,
            policies=("ksem=q3,kgeo=fp16,v=fp16",),
            context=8,
            limit_tokens=8,
            name="t",
            command="",
            reporter=SilentReporter(),
        )


def test_the_picture_names_every_policy(report, tmp_path):
    from dba_plugins.bench.quality_chart import quality_chart, short_policy

    quality_chart(tmp_path / "deep" / "quality.png", report)
    assert (tmp_path / "deep" / "quality.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    names = [short_policy(row["policy"]) for row in report.rows]
    assert names == ["fp32", "q4_0@8", "fp16", "q4_0@8, newest 24 in fp16"]
    assert short_policy("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=0") == "q4_0, q8_0, q4_0"
