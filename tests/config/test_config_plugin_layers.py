"""Plugins per layer: the texts, the sources one over the other, and conflicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dba_cli.output.config_toml import render_toml
from dba_core.config import PluginChoice, PluginChoices, RunConfig
from dba_core.config.loading import load_config, parse_plugin
from dba_core.errors import ConfigError
from dba_core.registry.choice import layers_text, parse_layers

FOUR_LAYERS = """
[plugins]
gate = "static"
[plugins.layers]
0-1 = {gate = "causal", null_token = "learned"}
"3" = {gate = {name = "causal", options = {bias = 1.0}}}
"""


@given(st.frozensets(st.integers(0, 40), min_size=1))
def test_layers_round_trip(layers: frozenset[int]) -> None:
    assert parse_layers(layers_text(layers)) == layers


@pytest.mark.parametrize(
    ("text", "shortest"),
    [("0-3", "0-3"), (" 5 ", "5"), ("2,0-1", "0-2"), ("7, 1 - 3,2", "1-3,7"), ("4-4", "4")],
)
def test_layers_are_spelled_shortest(text: str, shortest: str) -> None:
    assert layers_text(parse_layers(text)) == shortest


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1,,2", "0-1-2", "1.5", "1,", "٣-a"])
def test_wrong_layers(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layers(text)
    assert str(caught.value) == (
        f"{text!r} names no layers; allowed: numbers from 0 and ranges with commas between them, as in "
        "0-3 or 0-3,6"
    )


def test_a_plugin_text_names_layers() -> None:
    found = parse_plugin(" summarizer @ layers.3,0-1 = conv:kernel=5")
    assert (found.kind, found.layers, found.name, found.options) == (
        "summarizer",
        "0-1,3",
        "conv",
        {"kernel": 5},
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gate@layer.0=x", "'layer.0' is no place; write it as in gate@layers.0-3=name"),
        ("gate@=x", "unknown"),
        ("gat@layers.0=x", "unknown plugin kind 'gat'. Did you mean 'gate'"),
        ("gate@layers.=x", "'' names no layers"),
        ("gate@layers.2-1=x", "'2-1' names no layers"),
        ("gate@layers.0", "is not kind=name"),
    ],
)
def test_wrong_places(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plugin(text)
    if part != "unknown":
        assert part in str(caught.value)
    assert str(caught.value).startswith(f"plugins=[{text!r}]")


def load(tmp_path: Path, text: str = FOUR_LAYERS, *plugins: str, sets: tuple[str, ...] = ()) -> RunConfig:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load_config(file=file, plugins=plugins, sets=sets).config


def gates(config: RunConfig) -> list[str]:
    return [config.plugins.of_layer(layer).gate.name for layer in range(config.model.n_layers)]


def test_a_file_chooses_per_layer(tmp_path: Path) -> None:
    plugins = load(tmp_path).plugins
    assert gates(load(tmp_path)) == ["causal", "causal", "static", "causal"]
    assert [plugins.of_layer(layer).null_token.name for layer in range(4)] == ["learned"] * 2 + ["auto"] * 2
    assert plugins.of_layer(3).gate.options == {"bias": 1.0}
    assert plugins.of_layer(0).layers == {}


def test_the_command_line_takes_layers_out_of_a_range(tmp_path: Path) -> None:
    config = load(tmp_path, FOUR_LAYERS, "gate@layers.1-2=none")
    assert gates(config) == ["causal", "none", "none", "causal"]
    assert set(config.plugins.layers) == {"0", "0-1", "3", "1-2"}
    assert config.plugins.layers["0-1"] == {"null_token": PluginChoice("learned")}
    assert config.plugins.layers["3"]["gate"].options == {"bias": 1.0}


NAMES = st.lists(st.sampled_from([None, "a", "b"]), min_size=4, max_size=4)


@given(NAMES, NAMES)
def test_layer_by_layer_the_later_source_wins(below: list[str | None], above: list[str | None]) -> None:
    def ranges(names: list[str | None]) -> list[tuple[str, str]]:
        return [
            (layers_text(layer for layer, each in enumerate(names) if each == name), name)
            for name in ("a", "b")
            if name in names
        ]

    environment = {f"DBA__PLUGINS__LAYERS__{text}__GATE": f"low-{name}" for text, name in ranges(below)}
    plugins = [f"gate@layers.{text}=high-{name}" for text, name in ranges(above)]
    config = load_config(environ=environment, plugins=plugins).config
    expected = [
        f"high-{high}" if high else f"low-{low}" if low else "auto"
        for low, high in zip(below, above, strict=True)
    ]
    assert gates(config) == expected


def test_the_same_layers_again_replace_name_and_options(tmp_path: Path) -> None:
    again = load(tmp_path, FOUR_LAYERS, "gate@layers.3=causal:x=2")
    assert again.plugins.layers["3"]["gate"] == PluginChoice("causal", options={"x": 2})
    merged = load(tmp_path, sets=("plugins.layers.3.gate.options.x=2",))
    assert merged.plugins.layers["3"]["gate"].options == {"bias": 1.0, "x": 2}
    renamed = load(tmp_path, sets=("plugins.layers.3.gate=none",))
    assert renamed.plugins.layers["3"]["gate"] == PluginChoice("none")


def test_a_choice_for_all_layers_leaves_those_of_single_layers(tmp_path: Path) -> None:
    assert gates(load(tmp_path, FOUR_LAYERS, "gate=none")) == ["causal", "causal", "none", "causal"]
    cleared = load(tmp_path, FOUR_LAYERS, "gate=none", sets=("plugins.layers={}",))
    assert gates(cleared) == ["none"] * 4


@pytest.mark.parametrize(
    ("plugins", "sets", "text"),
    [
        (
            ("gate@layers.0-2=static", "gate@layers.2-3=causal"),
            (),
            "plugins.layers: layer 2 has two choices of gate: 'static' from layers 0-2 and 'causal' from "
            "layers 2-3; give each layer one (set by plugins=)",
        ),
        (
            ("gate@layers.0-2=static",),
            ("plugins.layers.1.gate=static",),
            "plugins.layers: layer 1 has two choices of gate: 'static' from layers 0-2 and 'static' from "
            "layer 1; give each layer one (set by plugins=)",
        ),
        (
            ("gate=static", "gate=causal"),
            (),
            "plugins=['gate=static'] and plugins=['gate=causal'] choose the same; give one of them",
        ),
        (
            ("gate@layers.0=static", "gate@layers.0-0=causal"),
            (),
            "plugins=['gate@layers.0=static'] and plugins=['gate@layers.0-0=causal'] choose the same; give "
            "one of them",
        ),
        (
            ("gate@layers.2-5=static",),
            (),
            "plugins.layers.2-5: layer 5 is not there; model.n_layers=4 allows 0 to 3 (set by plugins=)",
        ),
        (
            (),
            ("plugins.layers.0.gat=static",),
            "plugins.layers.0.gat: unknown plugin kind 'gat'. Did you mean 'gate'? Allowed: decode_backend, "
            "gate, null_token, summarizer. (set by sets=)",
        ),
        (
            (),
            ("plugins.layers.x.gate=static",),
            "plugins.layers: 'x' names no layers; allowed: numbers from 0 and ranges with commas between "
            "them, as in 0-3 or 0-3,6 (set by sets=)",
        ),
        (
            (),
            ("plugins.layers.0.gate.nam=static",),
            "plugins.layers.0.gate.nam: unknown key 'nam'. Did you mean 'name'? Allowed: name, options, "
            "record. (set by sets=)",
        ),
        ((), ("plugins.layers=3",), "plugins.layers: 3 is a whole number; allowed: a table (set by sets=)"),
    ],
)
def test_conflicts_and_wrong_places_are_named(
    plugins: tuple[str, ...], sets: tuple[str, ...], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(plugins=plugins, sets=sets)
    assert str(caught.value) == text


def test_round_trips(tmp_path: Path) -> None:
    loaded = load_config(plugins=("gate@layers.0,2=static:bias=1", "summarizer@layers.1=mean"))
    config = loaded.config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "again.toml").write_text(render_toml(loaded))
    assert load_config(file=tmp_path / "again.toml").config == config
    assert loaded.origins["plugins.layers.0,2.gate.name"] == "plugins="
    assert config.to_dict()["plugins"]["layers"]["0,2"]["gate"] == {
        "name": "static",
        "options": {"bias": 1},
        "record": None,
    }


def test_choices_replaced_everywhere_and_by_place() -> None:
    own = {
        "0-1": {"gate": PluginChoice("a"), "null_token": PluginChoice("n")},
        "3": {"gate": PluginChoice("b")},
    }
    choices = PluginChoices(gate=PluginChoice("c"), layers=own)
    everywhere = choices.in_all_layers("gate", PluginChoice("d"))
    assert everywhere.gate.name == "d"
    assert everywhere.layers == {"0-1": {"null_token": PluginChoice("n")}}
    one = choices.with_choices({("3", "gate"): PluginChoice("e"), ("", "null_token"): PluginChoice("m")})
    assert [(text, kind, choice.name) for text, kind, choice in one.entries() if choice.name != "auto"] == [
        ("", "gate", "c"),
        ("0-1", "gate", "a"),
        ("3", "gate", "e"),
        ("", "null_token", "m"),
        ("0-1", "null_token", "n"),
    ]


def test_exact_types_hold_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.gate: 'static' is a text; allowed: a PluginChoice"):
        PluginChoices(layers={"0": {"gate": "static"}})
