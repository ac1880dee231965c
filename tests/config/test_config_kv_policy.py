"""The KV policy's text: every field, order, spacing, every kind of wrong input, and the round trip."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dba_core.config.kv_policy import (
    MAX_RESIDUAL,
    KVCachePolicy,
    TensorFormat,
)
from dba_core.errors import ConfigError

TEXT = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"

formats = st.one_of(
    st.sampled_from(("fp32", "fp16", "bf16")).map(TensorFormat),
    st.builds(
        TensorFormat, st.sampled_from(("q8_0", "q4_0", "nf4")), st.sampled_from((8, 16, 32, 64, 128, 256))
    ),
)
policies = st.builds(
    KVCachePolicy, k_sem=formats, k_geo=formats, v=formats, residual=st.integers(0, MAX_RESIDUAL)
)
spaces = st.text(alphabet=" \t", max_size=3)


def test_every_field() -> None:
    policy = KVCachePolicy.parse("ksem=nf4@64,kgeo=q8_0@8,v=bf16,resid=7")
    assert policy.k_sem == TensorFormat("nf4", 64)
    assert policy.k_geo == TensorFormat("q8_0", 8)
    assert policy.v == TensorFormat("bf16", 0)
    assert policy.residual == 7


def test_short_is_the_text_itself() -> None:
    assert KVCachePolicy.parse(TEXT).short == TEXT


def test_what_is_left_out() -> None:
    policy = KVCachePolicy.parse("ksem=q4_0,kgeo=fp32,v=nf4")
    assert policy.short == "ksem=q4_0@32,kgeo=fp32,v=nf4@32,resid=0"


@pytest.mark.parametrize("parts", list(itertools.permutations(TEXT.split(","))))
def test_any_order(parts: tuple[str, ...]) -> None:
    assert KVCachePolicy.parse(",".join(parts)) == KVCachePolicy.parse(TEXT)


@given(policies)
def test_parse_reads_what_short_writes(policy: KVCachePolicy) -> None:
    assert KVCachePolicy.parse(policy.short) == policy


@given(policies, st.permutations([0, 1, 2, 3]), st.lists(spaces, min_size=16, max_size=16))
def test_order_and_spacing_change_nothing(policy: KVCachePolicy, order: list[int], gaps: list[str]) -> None:
    parts = policy.short.split(",")
    spaced = []
    for index in order:
        name, _, value = parts[index].partition("=")
        a, b, c, d = gaps[4 * index : 4 * index + 4]
        spaced.append(f"{a}{name}{b}={c}{value}{d}")
    assert KVCachePolicy.parse(",".join(spaced)) == policy


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_config_error(text: str) -> None:
    try:
        policy = KVCachePolicy.parse(text)
    except ConfigError:
        return
    assert KVCachePolicy.parse(policy.short) == policy


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "'' is not name=value"),
        ("None", "'None' is not name=value"),
        ("q4_0", "'q4_0' is not name=value"),
        ("ksem=,kgeo=fp16,v=fp16", "'ksem=' is not name=value"),
        ("ksem=fp16,kgeo=fp16,v=fp16,", "'' is not name=value"),
        ("ksem=fp16,kgeo=fp16", "lacks v"),
        ("resid=4", "lacks ksem, kgeo, v"),
        ("ksem=fp16,kgeo=fp16,v=fp16,ksem=fp16", "'ksem' is given twice"),
        ("k_sem=fp16,kgeo=fp16,v=fp16", "unknown field 'k_sem'. Did you mean 'ksem'"),
        ("ksem=fp16,kgeo=fp16,v=fp16,residual=3", "Did you mean 'resid'"),
        ("KSEM=fp16,kgeo=fp16,v=fp16", "unknown field 'KSEM'"),
        ("ksem=q4,kgeo=fp16,v=fp16", "unknown cache format 'q4'. Did you mean 'q4_0'"),
        ("ksem=fp16@32,kgeo=fp16,v=fp16", "fp16 has no blocks; write fp16"),
        ("ksem=q4_0@,kgeo=fp16,v=fp16", "the block length after '@' is ''"),
        ("ksem=q4_0@0,kgeo=fp16,v=fp16", "the block length after '@' is '0'"),
        ("ksem=q4_0@-8,kgeo=fp16,v=fp16", "the block length after '@' is '-8'"),
        ("ksem=q4_0@3.5,kgeo=fp16,v=fp16", "the block length after '@' is '3.5'"),
        ("ksem=q4_0@\u0663\u0662,kgeo=fp16,v=fp16", "the block length after '@'"),
        ("ksem=q4_0@33,kgeo=fp16,v=fp16", "block length 33; allowed: 8, 16, 32, 64, 128, 256"),
        ("ksem=q4_0@" + "3" * 5000 + ",kgeo=fp16,v=fp16", "the block length after '@'"),
        ("ksem=q4_0@32@32,kgeo=fp16,v=fp16", "the block length after '@' is '32@32'"),
        ("ksem=fp16,kgeo=fp16,v=fp16,resid=-1", "resid='-1' is no number of tokens"),
        ("ksem=fp16,kgeo=fp16,v=fp16,resid=1.5", "resid='1.5' is no number of tokens"),
        ("ksem=fp16,kgeo=fp16,v=fp16,resid=x", "resid='x' is no number of tokens"),
        ("ksem=fp16,kgeo=fp16,v=fp16,resid=" + "9" * 5000, "is no number of tokens"),
    ],
)
def test_wrong_texts(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KVCachePolicy.parse(text)
    assert part in str(caught.value)
    assert TEXT in str(caught.value)


@pytest.mark.parametrize("residual", [-1, MAX_RESIDUAL + 1])
def test_residual_out_of_range(residual: int) -> None:
    with pytest.raises(ConfigError, match="is no number of tokens"):
        KVCachePolicy(residual=residual)


def test_a_policy_is_replaced_as_a_whole() -> None:
    with pytest.raises(AttributeError):
        KVCachePolicy.parse(TEXT).residual = 3
