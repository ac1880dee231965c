"""A cache format of another distribution: 6 bits, as `dba plugins new` writes it; a broken one beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fake_site import empty_site

from dba_cli.scaffold.package import PluginPackage
from dba_core.attention.module import DecoupledAttention
from dba_core.config import AttentionConfig, KVCachePolicy
from dba_core.config.kv_policy import TensorFormat, format_facts, installed_formats
from dba_core.errors import ConfigError, PluginError, UnsupportedError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch

POLICY = "ksem=six,kgeo=six@8,v=six,resid=2"


@pytest.fixture
def six() -> Iterator[None]:
    """`six` of the distribution `bits`, and `torn`, whose module cannot be imported."""
    with empty_site() as site:
        site.module("dba_six", PluginPackage(kind="kv_format", name="six").files()["dba_six.py"])
        site.module("dba_torn", "import a_module_that_nobody_has\n")
        site.distribution("bits", {"dba.kv_formats": {"six": "dba_six", "torn": "dba_torn"}})
        Registry.default.cache_clear()
        yield
    Registry.default.cache_clear()


def layer(backend: str) -> DecoupledAttention:
    config = AttentionConfig(
        d_model=24, n_heads=4, n_kv_heads=2, sem_head_dim=4, geo_head_dim=6, v_head_dim=5
    )
    torch.manual_seed(0)
    return DecoupledAttention(config, decode_backend=backend).eval()


def test_streaming_decodes_over_it_and_the_compiled_backends_decline(six: None) -> None:
    assert KVCachePolicy.parse(POLICY).short == "ksem=six@32,kgeo=six@8,v=six@32,resid=2"
    assert list(installed_formats())[:5] == ["fp32", "fp16", "bf16", "q8_0", "six"]
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    outputs = {}
    for policy in (POLICY, "ksem=fp32,kgeo=fp32,v=fp32"):
        attention = layer("streaming")
        cache = attention.new_cache(batch=2, capacity=9, policy=policy)
        outputs[policy] = torch.cat([attention(part, cache=cache) for part in x.split((6, 1, 2), dim=1)], 1)
    assert cache.k_sem.format == "fp32"
    six_bits, exact = outputs.values()
    error = float((six_bits - exact).norm() / exact.norm())
    assert 0 < error < 3 * format_facts("six").round_trip_error
    for backend in ("cpu", "triton_1pass", "triton_2pass"):
        attention = layer(backend)
        with pytest.raises(UnsupportedError, match="format of k_sem: got six; supported: fp32, fp16"):
            attention(x, cache=attention.new_cache(batch=2, capacity=9, policy=POLICY))


def test_it_is_known_by_its_other_names_and_blocks(six: None) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'six'"):
        TensorFormat.parse("int6")
    with pytest.raises(ConfigError, match="six@7: block length 7; allowed: 8, 16"):
        TensorFormat.parse("six@7")


def test_a_broken_one_is_named_and_costs_nobody_else(six: None) -> None:
    assert "torn" not in installed_formats()
    with pytest.raises(PluginError, match=r"'torn' of bits 1\.0.*a_module_that_nobody_has"):
        TensorFormat.parse("torn")
    assert TensorFormat.parse("q4_0").short == "q4_0@32"


def test_an_allow_list_of_other_plugins_leaves_the_librarys_formats(
    six: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBA_PLUGINS_ALLOW", "mean,causal")
    Registry.default.cache_clear()
    assert TensorFormat.parse("q4_0").short == "q4_0@32"
    with pytest.raises(PluginError, match="not in the allow list"):
        TensorFormat.parse("six")
