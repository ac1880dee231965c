"""`from_dict`: dotted paths, unknown keys, older spellings, the one summarizer setting."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest

from dba_core.config import (
    KVCachePolicy,
    LongSequenceConfig,
    ModelConfig,
    PluginChoice,
    PluginChoices,
    PluginRecord,
    RunConfig,
)
from dba_core.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "path", "texts"),
    [
        ({"modle": {}}, "modle", ["unknown key 'modle'", "'model'"]),
        ({"model": {"d_modle": 3}}, "model.d_modle", ["Did you mean 'd_model'", "n_layers"]),
        ({"model": {"attention": {"n_head": 3}}}, "model.attention.n_head", ["'n_heads'"]),
        ({"model": {"attention": {"n_heads": "x"}}}, "model.attention.n_heads", ["'x' is a text"]),
        ({"model": {"attention": {"n_heads": 7}}}, "model.attention.n_heads", ["d_model=192", "n_heads=7"]),
        ({"model": {"attention": {"mode": "gpa"}}}, "model.attention.mode", ["'gqa'"]),
        ({"plugins": {"gat": {"name": "x"}}}, "plugins.gat", ["'gate'"]),
        (
            {"plugins": {"gate": {"record": {"version": "1"}}}},
            "plugins.gate.record.distribution",
            ["missing"],
        ),
        ({"model": 5}, "model", ["5 is a whole number; allowed: a table"]),
        ({"model": []}, "model", ["[] is a list; allowed: a table"]),
        ({"kv_policy": 5}, "kv_policy", ["one atomic text", "kv_policy="]),
        ({"kv_policy": {"residual": 5}}, "kv_policy", ["Use kv_policy= for a unified configuration."]),
        ({"kv_policy": "ksem=q4_0"}, "kv_policy", ["lacks kgeo, v", "Example"]),
    ],
)
def test_an_error_has_its_dotted_path(data: dict[str, Any], path: str, texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(data)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    for text in texts:
        assert text in str(caught.value)


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict({"seed": True, "model": {"d_model": 3.7}})
    assert caught.value.path == "seed"
    assert "Also model.d_model: 3.7" in str(caught.value)


@pytest.mark.parametrize("data", [5, "text", None, []])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: a table with name, seed"):
        RunConfig.from_dict(data)


def test_from_dict_leaves_its_argument_alone() -> None:
    data: dict[str, Any] = {"train_long_seq_enabled": False, "train_long_seq": {"threshold": 7}}
    ModelConfig.from_dict(data)
    assert data == {"train_long_seq_enabled": False, "train_long_seq": {"threshold": 7}}


def test_the_flat_spelling_of_every_long_sequence_knob() -> None:
    knobs = LongSequenceConfig(
        enabled=False,
        threshold=100,
        mem_block=16,
        local_window=32,
        q_chunk=8,
        mass_correction=True,
    )
    flat = {f"train_long_seq_{key}": value for key, value in attrs.asdict(knobs).items()}
    assert ModelConfig.from_dict(flat).train_long_seq == knobs


def test_flat_and_nested_spelling_together() -> None:
    both = {"train_long_seq_enabled": False, "train_long_seq": {"enabled": False, "threshold": 9}}
    assert ModelConfig.from_dict(both).train_long_seq == LongSequenceConfig(enabled=False, threshold=9)
    both["train_long_seq"] = {"enabled": True}
    with pytest.raises(ConfigError, match=r"False contradicts train_long_seq.enabled=True") as caught:
        RunConfig.from_dict({"model": both})
    assert caught.value.path == "model.train_long_seq_enabled"
    with pytest.raises(ConfigError, match="5 is a whole number; allowed: a table") as caught:
        ModelConfig.from_dict({"train_long_seq_enabled": True, "train_long_seq": 5})
    assert caught.value.path == "train_long_seq"


def test_a_flat_knob_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({"train_long_seq_threshold": "3072"})
    assert caught.value.path == "train_long_seq.threshold"


@pytest.mark.parametrize(
    "data",
    [
        {"plugins": {"summarizer": {"name": "conv"}}},
        {"plugins": {"summarizer": "conv"}},
        {"model": {"train_long_seq": {"mem_summarizer": "conv"}}},
        {"model": {"train_long_seq_mem_summarizer": "conv"}},
        {
            "plugins": {"summarizer": {"name": "conv"}},
            "model": {"train_long_seq": {"mem_summarizer": "conv"}},
        },
        {
            "plugins": {"summarizer": {"name": "auto"}},
            "model": {"train_long_seq": {"mem_summarizer": "conv"}},
        },
        {
            "plugins": {"summarizer": {"name": "conv"}},
            "model": {"train_long_seq": {"mem_summarizer": "auto"}},
        },
    ],
)
def test_every_spelling_of_the_summarizer_is_a_choice_of_plugin(data: dict[str, Any]) -> None:
    before = copy.deepcopy(data)
    config = RunConfig.from_dict(data)
    assert config == RunConfig(plugins=PluginChoices(summarizer=PluginChoice("conv")))
    assert "mem_summarizer" not in config.to_dict()["model"]["train_long_seq"]
    assert data == before


def test_no_summarizer_means_auto() -> None:
    for data in ({}, *({"model": {"train_long_seq": {"mem_summarizer": name}}} for name in ("auto", None))):
        assert RunConfig.from_dict(data) == RunConfig()


def test_two_summarizers_are_a_contradiction() -> None:
    data = {
        "plugins": {"summarizer": {"name": "mean"}},
        "model": {"train_long_seq": {"mem_summarizer": "conv"}},
    }
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(data)
    assert caught.value.path == "plugins.summarizer.name"
    assert "'mean' contradicts model.train_long_seq.mem_summarizer='conv'" in str(caught.value)


def test_a_summarizer_that_is_stated_in_both_former_spellings() -> None:
    model: dict[str, Any] = {
        "train_long_seq_mem_summarizer": "mean",
        "train_long_seq": {"mem_summarizer": "mean", "threshold": 9},
    }
    config = RunConfig.from_dict({"model": model})
    assert config.plugins.summarizer == PluginChoice("mean")
    assert config.model.train_long_seq == LongSequenceConfig(threshold=9)
    model["train_long_seq"] = {"mem_summarizer": "conv"}
    with pytest.raises(
        ConfigError, match=r"'mean' contradicts train_long_seq.mem_summarizer='conv'"
    ) as caught:
        RunConfig.from_dict({"model": model})
    assert caught.value.path == "model.train_long_seq_mem_summarizer"


def test_the_options_of_the_summarizer_stay_where_only_its_name_was_elsewhere() -> None:
    data = {
        "plugins": {"summarizer": {"options": {"a": 1}}},
        "model": {"train_long_seq": {"mem_summarizer": "conv"}},
    }
    assert RunConfig.from_dict(data).plugins.summarizer == PluginChoice("conv", options={"a": 1})


def test_a_summarizer_that_is_no_name_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError, match="5 is a whole number") as caught:
        RunConfig.from_dict({"model": {"train_long_seq": {"mem_summarizer": 5}}})
    assert caught.value.path == "model.train_long_seq.mem_summarizer"


@pytest.mark.parametrize("former", ["conv", "third:conv"])
def test_a_distribution_before_the_name_is_no_contradiction(former: str) -> None:
    data = {
        "model": {"train_long_seq": {"mem_summarizer": former}},
        "plugins": {"summarizer": "other:conv"},
    }
    assert RunConfig.from_dict(data).plugins.summarizer == PluginChoice("other:conv")


def test_plugins_that_are_no_table_are_refused_beside_a_former_summarizer() -> None:
    for plugins, path in ((5, "plugins"), ({"summarizer": 5}, "plugins.summarizer")):
        data = {"model": {"train_long_seq": {"mem_summarizer": "conv"}}, "plugins": plugins}
        with pytest.raises(ConfigError, match="allowed: a table") as caught:
            RunConfig.from_dict(data)
        assert caught.value.path == path


def test_no_configuration_object_has_the_former_field() -> None:
    with pytest.raises(TypeError, match="mem_summarizer"):
        LongSequenceConfig(mem_summarizer="conv")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"unknown key 'mem_summarizer'"):
        ModelConfig.from_dict({"train_long_seq": {"mem_summarizer": "conv"}})


def test_a_record_survives() -> None:
    record = {"distribution": "dba", "version": "1", "contract": 1, "how": "named", "why": "by name"}
    config = RunConfig.from_dict({"plugins": {"gate": {"name": "causal", "record": record}}})
    assert config.plugins.gate.record == PluginRecord(**record)
    assert config.to_dict()["plugins"]["gate"]["record"] == record


@pytest.mark.parametrize(
    ("why", "how", "kept"),
    [
        ("chosen by name", "named", "chosen by name"),
        ("auto: first in the order, supports the request", "auto", None),
        ("as recorded (chosen by name)", "recorded", None),
        ("as recorded (auto: first in the order)", "auto", "auto: first in the order"),
    ],
)
def test_a_record_without_how_is_read_once_from_its_text(why: str, how: str, kept: str | None) -> None:
    old = {"distribution": "dba", "version": "1", "contract": 1, "why": why}
    assert PluginRecord.from_dict(old).to_dict() == {**old, "how": how, "why": kept or why}
    with pytest.raises(ConfigError, match="'guessed'"):
        PluginRecord.from_dict({**old, "how": "guessed"})


def test_config_objects_may_stand_inside_a_dictionary() -> None:
    policy = KVCachePolicy.parse("ksem=nf4,kgeo=q8_0,v=fp16")
    config = RunConfig.from_dict({"model": ModelConfig(d_model=96), "kv_policy": policy})
    assert (config.model.d_model, config.kv_policy) == (96, policy)


def test_to_dict_holds_plain_data_only() -> None:
    def check(value: Any) -> None:
        assert value is None or type(value) in (str, int, float, bool, list, dict)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    data = RunConfig.from_dict({"generation": {"stop": ["a"]}}).to_dict()
    check(data)
    assert data["kv_policy"] is None, "chosen by the model's size (runs.estimate)"
    assert list(data) == [field.name for field in attrs.fields(RunConfig)]
