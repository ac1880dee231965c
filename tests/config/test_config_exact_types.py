"""Exact types, the same from a dictionary and in direct construction: nothing is converted but 1 to 1.0."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dba_core.config import (
    AttentionConfig,
    DataConfig,
    GenerationConfig,
    KVCachePolicy,
    ModelConfig,
    PluginChoice,
    RunConfig,
    TensorFormat,
    TrainingConfig,
)
from dba_core.errors import ConfigError

WRONG: list[tuple[type, str, Any]] = [
    (AttentionConfig, "n_heads", True),
    (AttentionConfig, "n_heads", "8"),
    (AttentionConfig, "n_heads", 8.0),
    (AttentionConfig, "n_heads", 3.7),
    (AttentionConfig, "n_heads", None),
    (AttentionConfig, "n_heads", [8]),
    (AttentionConfig, "geo_head_dim", "16"),
    (AttentionConfig, "geo_head_dim", False),
    (AttentionConfig, "tie_qk", 1),
    (AttentionConfig, "tie_qk", "true"),
    (AttentionConfig, "mode", 3),
    (AttentionConfig, "rope_theta", "1e4"),
    (AttentionConfig, "rope_theta", True),
    (AttentionConfig, "rope_theta", math.nan),
    (AttentionConfig, "rope_theta", math.inf),
    (TrainingConfig, "lr", math.nan),
    (TrainingConfig, "lr", -math.inf),
    (TrainingConfig, "weight_decay", math.inf),
    (TrainingConfig, "lr", 10**400),
    (TrainingConfig, "steps", math.nan),
    (TrainingConfig, "compile", 0),
    (DataConfig, "source", 5),
    (DataConfig, "held_out", "0.1"),
    (GenerationConfig, "top_p", math.nan),
    (GenerationConfig, "top_p", True),
    (GenerationConfig, "stop", "abc"),
    (GenerationConfig, "stop", {"a": 1}),
    (GenerationConfig, "prompt", 12),
    (RunConfig, "seed", 1.5),
    (RunConfig, "name", 12),
    (RunConfig, "model", 5),
    (RunConfig, "plugins", ["gate"]),
    (PluginChoice, "options", 3),
    (PluginChoice, "name", 3),
]


@pytest.mark.parametrize(("cls", "field", "value"), WRONG)
def test_a_wrong_type_is_a_config_error_both_ways(cls: type, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: ") as direct:
        cls(**{field: value})
    with pytest.raises(ConfigError, match="allowed: ") as read:
        cls.from_dict({field: value})
    assert direct.value.path == read.value.path == field
    assert repr(value) in str(direct.value)
    assert repr(value) in str(read.value)


@pytest.mark.parametrize(
    "build", [lambda v: TrainingConfig(lr=v), lambda v: TrainingConfig.from_dict({"lr": v})]
)
def test_a_whole_number_becomes_a_float_where_one_is_wanted(build: Any) -> None:
    lr = build(1).lr
    assert lr == 1.0
    assert type(lr) is float


def test_a_whole_number_becomes_a_float_in_an_optional_field_too() -> None:
    assert type(GenerationConfig(top_p=1).top_p) is float
    assert type(GenerationConfig.from_dict({"top_p": 1}).top_p) is float


def test_a_list_becomes_a_tuple_both_ways() -> None:
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationConfig.from_dict({"stop": ["a", "b"]}).stop == ("a", "b")


def test_an_item_of_a_list_is_named_by_its_index() -> None:
    with pytest.raises(ConfigError) as read:
        RunConfig.from_dict({"generation": {"stop": ["a", 3]}})
    assert read.value.path == "generation.stop.1"
    with pytest.raises(ConfigError) as direct:
        GenerationConfig(stop=("a", 3))
    assert direct.value.path == "stop.1"


def test_a_number_where_a_text_is_wanted_is_answered_with_quotes() -> None:
    with pytest.raises(ConfigError, match="write it in quotes"):
        RunConfig.from_dict({"name": 12})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [1, -math.inf]}, object(), {1: 2}])
def test_plugin_options_hold_plain_finite_data(value: Any) -> None:
    for build in (lambda o: PluginChoice("x", options=o), lambda o: PluginChoice.from_dict({"options": o})):
        with pytest.raises(ConfigError) as caught:
            build({"key": value})
        assert caught.value.path.startswith("options.key")


def test_none_in_words_is_none_for_an_optional_number_only() -> None:
    assert GenerationConfig.from_dict({"top_p": "none", "top_k": "none"}).top_p is None
    assert GenerationConfig.from_dict({"prompt": "none"}).prompt == "none"
    with pytest.raises(ConfigError, match="'none' is a text"):
        GenerationConfig.from_dict({"temperature": "none"})
    with pytest.raises(ConfigError, match="'none' is a text"):
        GenerationConfig(top_p="none")


def test_policies_are_exact_too() -> None:
    with pytest.raises(ConfigError, match="residual: True"):
        KVCachePolicy(residual=True)
    with pytest.raises(ConfigError, match="k_sem"):
        KVCachePolicy(k_sem="q4_0@32")
    with pytest.raises(ConfigError, match="qblock"):
        TensorFormat("q4_0", "32")
    with pytest.raises(ConfigError, match="None is nothing; allowed: a text"):
        KVCachePolicy.parse(None)


@pytest.mark.parametrize(
    ("build", "path", "text"),
    [
        (lambda: AttentionConfig(n_heads=0), "n_heads", "0 is too small; allowed: at least 1"),
        (lambda: AttentionConfig(dropout=1), "dropout", "1.0 is out of range; allowed: 0 <= value < 1"),
        (lambda: TrainingConfig(lr=0), "lr", "0.0 is not positive; allowed: any number above 0"),
        (lambda: DataConfig(source=""), "source", "is empty; give a value"),
        (lambda: ModelConfig(norm="rmsnrm"), "norm", "Did you mean 'rmsnorm'"),
        (lambda: RunConfig(device="gpu"), "device", "Allowed: auto, cpu, cuda, cuda:N"),
        (lambda: RunConfig(device="cuda:x"), "device", "unknown device 'cuda:x'"),
        (lambda: RunConfig(seed=2**63), "seed", "out of range; allowed: 0 <= value <= 9223372036854775807"),
        (lambda: TrainingConfig(batch_size=6, grad_accum=4), "grad_accum", "not a multiple"),
    ],
)
def test_a_value_out_of_range_names_value_and_range(build: Any, path: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.path == path
    assert text in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_that_are_allowed(device: str) -> None:
    assert RunConfig(device=device).device == device


def test_a_huge_whole_number_is_no_crash() -> None:
    assert TrainingConfig(steps=10**400).steps == 10**400
