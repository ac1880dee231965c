"""`load_config`: precedence, origins, contradictions, and the printed configuration that feeds back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dba_cli.output.config_toml import render_toml
from dba_core.config import LoadedConfig, PluginChoice, RunConfig, load_config
from dba_core.config.layers import flatten
from dba_core.errors import ConfigError

RECORD = {"distribution": "dba", "version": "0.1.0", "contract": 1, "why": "auto"}
FP16 = "ksem=fp16,kgeo=fp16,v=fp16"


def write(folder: Path, text: str, name: str = "my.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_default() -> None:
    loaded = load_config()
    assert loaded.config == RunConfig()
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == {".".join(path) for path in flatten(RunConfig().to_dict(), "")}


def test_each_source_overrules_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path, "seed = 2\n[training]\nsteps = 2\nlr = 2\nwarmup_steps = 2\n")
    environ = {"DBA__TRAINING__LR": "3", "DBA__TRAINING__WARMUP_STEPS": "3"}
    loaded = load_config(
        preset="shakespeare-cpu", file=file, environ=environ, sets=["training.warmup_steps=4"], kv_policy=FP16
    )
    training = loaded.config.training
    assert (training.batch_size, training.steps, training.lr, training.warmup_steps) == (12, 2, 3.0, 4)
    assert loaded.config.seed == 2
    assert loaded.config.kv_policy.short == f"{FP16},resid=0"
    origins = {
        "training.grad_accum": "default",
        "training.batch_size": "preset shakespeare-cpu",
        "training.steps": f"file {file}",
        "training.lr": "environment DBA__TRAINING__LR",
        "training.warmup_steps": "sets=",
        "kv_policy": "kv_policy=",
    }
    assert {key: loaded.origins[key] for key in origins} == origins


def test_the_environment_is_read_only_when_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBA__SEED", "99")
    assert load_config().config.seed == RunConfig().seed


def test_plugins_with_options() -> None:
    loaded = load_config(plugins=["gate=static:bias=0.5,label=x", "summarizer=conv"])
    assert loaded.config.plugins.gate == PluginChoice("static", options={"bias": 0.5, "label": "x"})
    assert loaded.config.plugins.summarizer.name == "conv"
    assert loaded.origins["plugins.gate.options.bias"] == "plugins="
    assert loaded.origins["plugins.summarizer.name"] == "plugins="


def test_a_summarizer_in_its_former_place_keeps_its_origin() -> None:
    loaded = load_config(sets=["model.train_long_seq.mem_summarizer=conv"])
    assert loaded.origins["plugins.summarizer.name"] == "sets="
    assert "model.train_long_seq.mem_summarizer" not in loaded.origins
    with pytest.raises(ConfigError, match=r"5 is a whole number.*set by sets=") as caught:
        load_config(sets=["model.train_long_seq.mem_summarizer=5"])
    assert caught.value.path == "model.train_long_seq.mem_summarizer"


def test_two_plugins_of_a_kind_are_refused_and_the_same_twice_is_not() -> None:
    with pytest.raises(
        ConfigError, match=r"'gate=static:bias=0\.5'\] and plugins=\['gate=causal'\] choose the same"
    ):
        load_config(plugins=["gate=static:bias=0.5", "gate=causal"])
    assert load_config(plugins=["gate=causal"] * 2).config.plugins.gate == PluginChoice("causal")


@pytest.mark.parametrize(
    ("kwargs", "path", "texts"),
    [
        ({"sets": ["model.d_modle=3"]}, "model.d_modle", ["'d_model'", "set by sets="]),
        ({"sets": ["modl.d_model=3"]}, "modl", ["'model'", "set by sets="]),
        ({"sets": ["model=3"]}, "model", ["3 is a whole number; allowed: a table", "sets="]),
        ({"sets": ["model.d_model.x=3"]}, "model.d_model", ["a whole number", "sets="]),
        ({"sets": ["training.lr=nan"]}, "training.lr", ["nan is not finite"]),
        ({"sets": ["training.lr=fast"]}, "training.lr", ["'fast' is a text"]),
        (
            {"sets": ["training.compile=True"]},
            "training.compile",
            ["'True' is a text; allowed: true or false"],
        ),
        ({"environ": {"DBA__SEDE": "1"}}, "sede", ["'seed'", "set by environment DBA__SEDE"]),
        ({"environ": {"DBA__SEED": "x"}}, "seed", ["'x' is a text", "environment DBA__SEED"]),
        ({"kv_policy": "fp16"}, "kv_policy", ["'fp16' is not name=value", "set by kv_policy="]),
        ({"environ": {"DBA__KV_POLICY": "fp16"}}, "kv_policy", ["environment DBA__KV_POLICY"]),
        ({"environ": {"DBA__KV_POLICY__RESID": "1"}}, "kv_policy.resid", ["Use kv_policy="]),
        ({"preset": "shakespear"}, "", ["unknown preset 'shakespear'", "'shakespeare-cpu'"]),
    ],
)
def test_an_error_names_its_source(kwargs: dict[str, Any], path: str, texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(**kwargs)
    assert caught.value.path == path
    for text in texts:
        assert text in str(caught.value)


def test_a_table_for_the_kv_policy_in_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[kv_policy]\nresid = 3\n")
    with pytest.raises(ConfigError, match="Use kv_policy= for a unified configuration"):
        load_config(file=file, preset="shakespeare-cpu")


def test_an_empty_table_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "[model]\n[model.attention]\n[plugins.gate]\n")
    assert (
        load_config(file=file, preset="shakespeare-cpu").config
        == load_config(preset="shakespeare-cpu").config
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"plugins": ["summarizer=conv"], "sets": ["model.train_long_seq.mem_summarizer=mean"]},
        {"plugins": ["summarizer=conv"], "sets": ["model.train_long_seq_mem_summarizer=mean"]},
        {"plugins": ["gate=static"], "sets": ["plugins.gate.name=causal"]},
        {"plugins": ["gate=static"], "sets": ["plugins.gate=causal"]},
        {"sets": ["plugins.summarizer.name=mean", "model.train_long_seq.mem_summarizer=conv"]},
        {"sets": ["model.train_long_seq.enabled=true", "model.train_long_seq_enabled=false"]},
        {"sets": [f"kv_policy={FP16}"], "kv_policy": "ksem=fp32,kgeo=fp32,v=fp32"},
        {"environ": {"DBA__PLUGINS__GATE": "static", "DBA__PLUGINS__GATE__NAME": "causal"}},
    ],
)
def test_contradictions_on_one_level_are_errors(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="are one setting; give it once"):
        load_config(**kwargs)


def test_a_contradiction_names_both() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(plugins=["summarizer=conv"], sets=["model.train_long_seq.mem_summarizer=mean"])
    assert "'conv' (plugins=)" in str(caught.value)
    assert "'mean' (sets=)" in str(caught.value)


def test_a_contradiction_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path, "[plugins]\nsummarizer = 'conv'\n[model.train_long_seq]\nmem_summarizer = 'mean'\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file=file)
    assert "plugins.summarizer.name='conv'" in str(caught.value)
    assert f"model.train_long_seq.mem_summarizer='mean' (file {file})" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[plugins]\nsummarizer = 'conv'\n", "[model]\ntrain_long_seq_mem_summarizer='conv'"]
)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"plugins": ["summarizer=mean"]},
        {"sets": ["plugins.summarizer=mean"]},
        {"sets": ["model.train_long_seq.mem_summarizer=mean"]},
        {"environ": {"DBA__MODEL__TRAIN_LONG_SEQ_MEM_SUMMARIZER": "mean"}},
    ],
)
def test_a_higher_source_overrules_either_spelling(tmp_path: Path, text: str, kwargs: dict[str, Any]) -> None:
    config = load_config(file=write(tmp_path, text), **kwargs).config
    assert config.plugins.summarizer == PluginChoice("mean")


def test_back_to_auto(tmp_path: Path) -> None:
    config = load_config(
        file=write(tmp_path, "[plugins]\nsummarizer = 'conv'\n"), plugins=["summarizer=auto"]
    ).config
    assert config.plugins.summarizer == PluginChoice("auto")


class TestResolvedConfigFedBack:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        data = RunConfig().to_dict()
        data["plugins"]["gate"] = {"name": "static", "options": {"bias": 0.5}, "record": RECORD}
        data["plugins"]["summarizer"] = {"name": "conv", "options": {"kernel": 3}, "record": RECORD}
        data["model"]["train_long_seq"]["mem_summarizer"] = "conv"
        return write(tmp_path, json.dumps(data), "resolved_config.json")

    def test_records_are_kept(self, file: Path) -> None:
        config = load_config(file=file).config
        assert config == RunConfig.from_dict(json.loads(file.read_text()))
        assert config.plugins.gate.record is not None
        assert config.plugins.gate.record.version == "0.1.0"

    @pytest.mark.parametrize("text", ["gate=static", "gate=causal"])
    def test_a_new_choice_drops_record_and_options(self, file: Path, text: str) -> None:
        plugins = load_config(file=file, plugins=[text]).config.plugins
        assert plugins.gate == PluginChoice(text.partition("=")[2])
        assert plugins.summarizer.record is not None

    def test_a_new_name_by_set_drops_record_and_options(self, file: Path) -> None:
        plugins = load_config(file=file, sets=["model.train_long_seq.mem_summarizer=mean"]).config.plugins
        assert plugins.summarizer == PluginChoice("mean")
        assert plugins.gate.record is not None

    def test_an_option_by_set_keeps_the_rest(self, file: Path) -> None:
        gate = load_config(file=file, sets=["plugins.gate.options.bias=1", "plugins.gate.name=static"]).config
        assert gate.plugins.gate.options == {"bias": 1}
        assert gate.plugins.gate.record is not None

    def test_options_beside_a_new_choice(self, file: Path) -> None:
        loaded = load_config(file=file, plugins=["gate=static"], sets=["plugins.gate.options.x=1"])
        assert loaded.config.plugins.gate == PluginChoice("static", options={"x": 1})

    def test_its_printed_form_feeds_back(self, file: Path, tmp_path: Path) -> None:
        loaded = load_config(file=file)
        again = load_config(file=write(tmp_path, render_toml(loaded)))
        assert again.config == loaded.config


def reloaded(loaded: LoadedConfig, folder: Path) -> RunConfig:
    return load_config(file=write(folder, render_toml(loaded), "printed.toml")).config


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"preset": "paper-gqa"},
        {
            "sets": [
                "generation.top_p=none",
                'generation.prompt="a\\nb \\"c\\" # d"',
                'generation.stop=["x", ""]',
            ]
        },
        {"plugins": ["gate=static:s='x y',n={a = [1, {b = 2}]}"], "kv_policy": FP16},
    ],
)
def test_the_printed_configuration_feeds_back(kwargs: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_config(**kwargs)
    assert reloaded(loaded, tmp_path) == loaded.config


def test_the_printed_configuration_shows_every_value_and_its_origin() -> None:
    loaded = load_config(preset="shakespeare-cpu", sets=["generation.top_p=none"], plugins=["gate=static"])
    lines = render_toml(loaded).splitlines()
    assert "n_layers = 4  # preset shakespeare-cpu" in lines
    assert "# d_ff is none  # default" in lines
    assert 'top_p = "none"  # sets=' in lines
    assert 'name = "static"  # plugins=' in lines
    for key in loaded.origins:
        leaf = key.rpartition(".")[2]
        assert any(line.startswith((f"{leaf} = ", f"# {leaf} is none")) for line in lines), key
