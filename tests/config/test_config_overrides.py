"""`sets`, `plugins`, `kv_policy` and DBA__ variables: how their texts are read."""

from __future__ import annotations

from typing import Any

import pytest

from dba_core.config.loading import from_environment, from_sets, parse_plugin, parse_value
from dba_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        (" 12 ", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("none", "none"),
        ("bare word", "bare word"),
        ("runs/x y.txt", "runs/x y.txt"),
        ('"12"', "12"),
        ("'a\\b'", "a\\b"),
        ("[1, 2]", [1, 2]),
        ('{a = 1, b = "x"}', {"a": 1, "b": "x"}),
        ("2024-01-01", "2024-01-01"),
        ("10:30:00", "10:30:00"),
        ("5 # five", "5 # five"),
        ("# Title", "# Title"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
        ("1.2.3", "1.2.3"),
        ("tiktoken:gpt2", "tiktoken:gpt2"),
        ("ksem=q4_0@32,kgeo=q8_0@32", "ksem=q4_0@32,kgeo=q8_0@32"),
    ],
)
def test_values_are_toml_and_bare_words_are_texts(text: str, value: Any) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ['"open', "[1, 2", "{a = }", "'x' y"])
def test_what_begins_like_a_structure_must_be_one(text: str) -> None:
    with pytest.raises(ConfigError, match="must be quoted"):
        parse_value(text)


def test_sets_become_paths() -> None:
    layer = from_sets(["a.b=1", "c = x", "a.b=2", "d.e={f = 3, g = {h = 4}}"])
    assert {path: setting.value for path, setting in layer.items()} == {
        ("a", "b"): 2,
        ("c",): "x",
        ("d", "e", "f"): 3,
        ("d", "e", "g", "h"): 4,
    }
    assert {setting.origin for setting in layer.values()} == {"sets="}


@pytest.mark.parametrize("text", ["", "a", "=1", "a.=1", ".a=1", "a..b=1"])
def test_a_set_that_is_no_assignment(text: str) -> None:
    with pytest.raises(ConfigError, match="is not key=value"):
        from_sets([text])


@pytest.mark.parametrize("text", ["kv_policy.residual=64", "kv_policy.k_sem.format=fp16"])
def test_a_part_of_the_kv_policy_cannot_be_set(text: str) -> None:
    with pytest.raises(ConfigError, match="Use kv_policy= for a unified configuration") as caught:
        from_sets([text])
    assert caught.value.path == text.partition("=")[0]


@pytest.mark.parametrize("text", ["ksem=fp16,kgeo=fp16,v=fp16", '"ksem=fp16,kgeo=fp16,v=fp16"'])
def test_the_whole_kv_policy_can_be_set(text: str) -> None:
    assert from_sets([f"kv_policy={text}"])[("kv_policy",)].value == "ksem=fp16,kgeo=fp16,v=fp16"


def test_environment() -> None:
    layer = from_environment(
        {"DBA__MODEL__D_MODEL": "256", "DBA__NAME": "x", "DBA_OTHER": "1", "PATH": "/", "dba__seed": "1"}
    )
    assert {path: (s.value, s.origin) for path, s in layer.items()} == {
        ("model", "d_model"): (256, "environment DBA__MODEL__D_MODEL"),
        ("name",): ("x", "environment DBA__NAME"),
    }


@pytest.mark.parametrize("name", ["DBA__", "DBA__MODEL__", "DBA____D_MODEL"])
def test_a_variable_that_names_no_key(name: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {name} names no key"):
        from_environment({name: "1"})


def test_a_variable_with_a_broken_value_is_named() -> None:
    with pytest.raises(ConfigError, match="environment DBA__GENERATION__STOP") as caught:
        from_environment({"DBA__GENERATION__STOP": "[1"})
    assert caught.value.path == "generation.stop"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gate=static", ("gate", "static", {})),
        (" gate = static ", ("gate", "static", {})),
        ("summarizer=conv:kernel=3", ("summarizer", "conv", {"kernel": 3})),
        ("summarizer=conv:kernel=3,bias=true", ("summarizer", "conv", {"kernel": 3, "bias": True})),
        ("summarizer=conv:x=1e-3, y = word", ("summarizer", "conv", {"x": 0.001, "y": "word"})),
        ('summarizer=conv:taps=[1, 2],s="a,b"', ("summarizer", "conv", {"taps": [1, 2], "s": "a,b"})),
        ("summarizer=conv:path=a:b", ("summarizer", "conv", {"path": "a:b"})),
        ("summarizer=conv:a=x=y", ("summarizer", "conv", {"a": "x=y"})),
        ("gate=my-dist:static", ("gate", "my-dist:static", {})),
        ("gate=my-dist:static:a=1,b=2:3", ("gate", "my-dist:static", {"a": 1, "b": "2:3"})),
        ("decode_backend=auto", ("decode_backend", "auto", {})),
    ],
)
def test_plugin_texts(text: str, expected: tuple[str, str, dict[str, Any]]) -> None:
    found = parse_plugin(text)
    assert (found.kind, found.name, found.options) == expected
    assert found.layers == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gate", "is not kind=name"),
        ("gate=", "is not kind=name"),
        ("=static", "unknown plugin kind ''"),
        ("gats=static", "unknown plugin kind 'gats'. Did you mean 'gate'"),
        ("gate=:", "is not kind=name:key=value"),
        ("gate=static:", "is not kind=name:key=value"),
        ("gate=static:,", "is not key=value"),
        ("gate=static:a=1,b", "'b' is not key=value"),
        ("gate=static:=1", "'=1' is not key=value"),
        ("gate=static=1", "is not kind=name:key=value"),
        ("gate=static:a=[1", "must be quoted"),
    ],
)
def test_wrong_plugin_texts(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plugin(text)
    assert part in str(caught.value)
