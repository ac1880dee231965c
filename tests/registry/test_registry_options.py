"""Options of plugins: exact types, unknown names, defaults, and the round trip."""

from __future__ import annotations

from typing import Any

import pytest
from fake_site import GOOD_GATE, FakeSite

from dba_cli.commands.plugins.info import describe_options
from dba_core.config.loading import parse_plugin
from dba_core.errors import ConfigError, PluginError
from dba_core.registry.plugin_loading import (
    LoadedPlugin,
    options_to_dict,
    structure_options,
)

CHECKED = GOOD_GATE.replace(
    "bias: float = 0.5",
    "bias: float = attrs.field(default=0.5, validator=attrs.validators.le(1))\n"
    "    mode: Literal['a', 'b'] = 'a'\n    names: list[str] = attrs.field(factory=list)",
).replace("import attrs", "from __future__ import annotations\nimport attrs\nfrom typing import Literal")


@pytest.fixture
def loaded(site: FakeSite) -> LoadedPlugin:
    site.gate("one", distribution="d-one", source=CHECKED)
    return site.registry().load("gate", "one")


def test_defaults_are_the_plugins(loaded: LoadedPlugin) -> None:
    assert structure_options(loaded, {}) == loaded.plugin.options_class()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gate=one:bias=1", {"bias": 1.0}),
        ("gate=one:bias=0.25,label=x", {"bias": 0.25, "label": "x"}),
        ("gate=one:taps=[1, 2],names=[a]", None),
        ("gate=one:taps=[1, 2],names=['a']", {"taps": [1, 2], "names": ["a"]}),
        ("gate=one:mode=b", {"mode": "b"}),
    ],
)
def test_values_from_the_command_line(
    loaded: LoadedPlugin, text: str, expected: dict[str, Any] | None
) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="must be quoted"):
            parse_plugin(text)
        return
    options = options_to_dict(structure_options(loaded, parse_plugin(text).options))
    assert {key: options[key] for key in expected} == expected
    assert structure_options(loaded, options) == structure_options(loaded, expected)


@pytest.mark.parametrize(
    ("options", "path", "text"),
    [
        ({"bais": 1}, "bais", "unknown option of gate 'one': 'bais'. Did you mean 'bias'"),
        ({"bias": "1"}, "bias", "'1' is a text; allowed: a finite number"),
        ({"bias": True}, "bias", "True is a truth value"),
        ({"bias": float("nan")}, "bias", "nan is not finite"),
        ({"bias": 1.5}, "", "1.5"),
        ({"taps": 3}, "taps", "3 is a whole number; allowed: a list"),
        ({"taps": [1, 2.5]}, "taps.1", "2.5 is a number with a fraction"),
        ({"taps": [1, True]}, "taps.1", "True is a truth value"),
        ({"names": "abc"}, "names", "'abc' is a text; allowed: a list"),
        ({"label": 3}, "label", "3 is a whole number; allowed: a text"),
        ({"mode": "c"}, "mode", "unknown value 'c'"),
    ],
)
def test_wrong_options(loaded: LoadedPlugin, options: dict[str, Any], path: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure_options(loaded, options)
    assert caught.value.path == f"plugins.gate.options.{path}".rstrip(".")
    assert text in str(caught.value)


def test_a_plugin_that_takes_none(site: FakeSite) -> None:
    source = GOOD_GATE.replace("options_class = Options", "options_class = NoOptions").replace(
        "import Reason", "import NoOptions, Reason"
    )
    site.gate("bare", distribution="d-bare", source=source)
    loaded = site.registry().load("gate", "bare")
    assert options_to_dict(structure_options(loaded, {})) == {}
    with pytest.raises(ConfigError, match=r"gate 'bare' takes no options, got a=1, b='x'; leave them out"):
        structure_options(loaded, {"a": 1, "b": "x"})


def test_options_that_break_in_the_plugins_own_code(site: FakeSite) -> None:
    source = GOOD_GATE.replace(
        "label: str | None = None",
        "label: str | None = None\n    def __attrs_post_init__(self):\n"
        "        if self.label == 'odd':\n            raise SystemExit(1)",
    )
    site.gate("one", distribution="d-one", source=source)
    loaded = site.registry().load("gate", "one")
    with pytest.raises(PluginError, match="SystemExit"):
        structure_options(loaded, {"label": "odd"})


@pytest.mark.parametrize(
    ("hint", "options", "named"),
    [
        ("object", {}, "object"),
        ("complex", {"bias": 1}, "complex"),
        ("int | str | None", {}, "int | str | None"),
        ("complex | None", {"label": 1}, "complex"),
        ("list[complex]", {"label": [1]}, "complex"),
    ],
)
def test_a_field_that_no_file_can_hold(
    site: FakeSite, hint: str, options: dict[str, Any], named: str
) -> None:
    site.gate("one", distribution="d", source=GOOD_GATE.replace("label: str | None", f"label: {hint}"))
    loaded = site.registry().load("gate", "one")
    with pytest.raises(PluginError) as caught:
        structure_options(loaded, options)
    said = (
        f"gate 'one' of d 1.0 cannot be used: field 'label' of its options class is of type {named}; allowed"
    )
    assert str(caught.value).startswith(said)
    assert "hook" not in str(caught.value)


def test_options_are_described(loaded: LoadedPlugin) -> None:
    described = {
        name: (kind, default) for name, kind, default in describe_options(loaded.plugin.options_class)
    }
    assert described["bias"] == ("float", 0.5)
    assert described["taps"] == ("tuple[int, ...]", [])
    assert described["label"] == ("str | None", None)
