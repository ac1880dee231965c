"""Loading: only the plugin that is asked for, through pluggy, and whole or not at all."""

from __future__ import annotations

import sys

import pytest
from fake_site import GOOD_GATE, FakeSite, RequestOn

from dba_core.errors import ConfigError, PluginError
from dba_core.registry import Registry

HEAD = "import sys\nfrom dba_core import hookimpl\nfrom dba_core.contracts import NoOptions, Support\n"
CLASS = """
class Gate:
    name = "bad"
    contract = 1
    summary = "s"
    options_class = NoOptions
    def supports(self, request, options):
        return Support.yes()
    def build(self, request, options):
        return "built"
"""
HOOK = "@hookimpl\ndef dba_gate():\n    return Gate()\n"
WHOLE = HEAD + CLASS + HOOK

BROKEN = {
    "import error": (
        "import no_such_module_here",
        "ModuleNotFoundError: No module named 'no_such_module_here'",
    ),
    "syntax error": ("def f(:", "SyntaxError"),
    "any exception": ("raise RuntimeError('at   import\\ntime')", "RuntimeError: at import time"),
    "exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "no hook": ("x = 1", "implements no hook dba_gate; decorate a function dba_gate()"),
    "undecorated hook": (
        HEAD + CLASS + "def dba_gate():\n    return Gate()\n",
        "implements no hook dba_gate",
    ),
    "hook of another kind": (WHOLE.replace("dba_gate", "dba_summarizer"), "implements no hook dba_gate"),
    "unknown hook": (
        WHOLE.replace("dba_gate", "dba_gates"),
        "PluginValidationError: unknown hook 'dba_gates'",
    ),
    "hook with an argument": (WHOLE.replace("dba_gate()", "dba_gate(shape)"), "PluginValidationError"),
    "hook that raises": (
        WHOLE.replace("return Gate()", "return 1 / 0"),
        "ZeroDivisionError: division by zero",
    ),
    "hook that returns nothing": (
        WHOLE.replace("return Gate()", "return None"),
        "dba_gate() returned nothing",
    ),
    "no plugin": (
        WHOLE.replace("return Gate()", "return 5"),
        "returned 'int', no plugin: it lacks name, contract",
    ),
    "no build": (WHOLE.replace("build", "construct"), "it lacks build"),
    "another name": (WHOLE.replace('"bad"', '"good"'), "it calls itself 'good', its entry point 'bad'"),
    "older contract": (
        WHOLE.replace("contract = 1", "contract = 0"),
        "install a newer version of the plugin",
    ),
    "newer contract": (
        WHOLE.replace("contract = 1", "contract = 2"),
        "install a newer dba, or an older version",
    ),
    "contract True": (
        WHOLE.replace("contract = 1", "contract = True"),
        "its contract is True; contract must be a whole number",
    ),
    "contract text": (
        WHOLE.replace("contract = 1", "contract = '1'"),
        "its contract is '1'; contract must be a whole",
    ),
    "contract None": (WHOLE.replace("contract = 1", "contract = None"), "contract must be a whole number"),
    "contract of 400 digits": (
        WHOLE.replace("contract = 1", "contract = 10**400"),
        f"contract 1{'0' * 23}..., this dba has contract 1: install a newer dba",
    ),
    "contract of 5000 digits": (
        WHOLE.replace("contract = 1", "contract = 10**5000"),
        "contract an object of type int, this dba has contract 1: install a newer dba",
    ),
    "a class": (
        WHOLE.replace("return Gate()", "return Gate"),
        "its hook returned the class Gate; return an instance: Gate()",
    ),
    "no options class": (WHOLE.replace("= NoOptions", "= dict"), "no attrs class (NoOptions takes none)"),
    "an options object": (WHOLE.replace("= NoOptions", "= NoOptions()"), "no attrs class"),
    "options without defaults": (
        WHOLE.replace(
            "class Gate:", "import attrs\n@attrs.frozen\nclass O:\n    a: int\nclass Gate:"
        ).replace("= NoOptions", "= O"),
        "TypeError",
    ),
    "no summary": (WHOLE.replace('summary = "s"', "summary = 3"), "its summary is 3, no text"),
    "supports is no method": (
        WHOLE.replace(
            "def supports(self, request, options):\n        return Support.yes()", "supports = True"
        ),
        "its supports cannot be called",
    ),
    "a property that raises": (
        WHOLE.replace('summary = "s"', "@property\n    def summary(self):\n        raise KeyError('k')"),
        "reading it raised KeyError",
    ),
    "an error of our own": (
        "from dba_core.errors import RecordMismatchError\nraise RecordMismatchError('mine')",
        "RecordMismatchError: mine",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_breaks_its_own_use_only(site: FakeSite, case: str, request_on: RequestOn) -> None:
    source, problem = BROKEN[case]
    site.gate("bad", distribution="bad-dist", source=source)
    site.gate("good", distribution="good-dist")
    registry = site.registry()
    assert {info.name: info.problem for info in registry.list()} == {"bad": None, "good": None}
    for use in (registry.load, lambda kind, name: registry.select(kind, name, request_on())):
        with pytest.raises(PluginError) as caught:
            use("gate", "bad")
        assert problem in str(caught.value)
        assert "gate 'bad' of bad-dist 1.0" in str(caught.value)
        assert "choose another gate" in str(caught.value)
    after = {info.name: info.problem for info in registry.list()}
    assert after["good"] is None
    assert after["bad"] is not None
    assert problem in after["bad"]
    assert registry.select("gate", "good", request_on()).build() == "good 0.5 cpu"


def test_the_cause_is_kept_for_a_traceback(site: FakeSite) -> None:
    site.gate("bad", distribution="bad-dist", source="raise RuntimeError('boom')")
    registry = site.registry()
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            registry.load("gate", "bad")
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_interrupt_is_not_swallowed(site: FakeSite) -> None:
    site.gate("bad", distribution="bad-dist", source="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.registry().load("gate", "bad")


def test_only_the_plugin_that_is_asked_for_is_imported_and_only_once(site: FakeSite) -> None:
    wanted = site.gate("wanted", distribution="d-one", source="COUNT = []\nCOUNT.append(1)\n" + GOOD_GATE)
    other = site.gate("other", distribution="d-two")
    registry = site.registry()
    loaded = registry.load("gate", "wanted")
    assert registry.load("gate", "wanted") is loaded
    assert loaded.plugin.name == "wanted"
    assert loaded.info.distribution == "d-one"
    assert sys.modules[wanted].COUNT == [1]
    assert other not in sys.modules


def test_an_entry_point_may_name_an_object(site: FakeSite) -> None:
    site.module(
        "family.gates",
        HEAD
        + CLASS.replace('"bad"', '"made"')
        + "class Holder:\n    @hookimpl\n    def dba_gate(self):\n        return Gate()\n"
        + "class Box:\n    holder = Holder()\n",
    )
    site.distribution(
        "family", {"gate": {"made": "family.gates:Box.holder", "lost": "family.gates:Box.none"}}
    )
    registry = site.registry()
    assert registry.load("gate", "made").plugin.summary == "s"
    with pytest.raises(PluginError, match="AttributeError"):
        registry.load("gate", "lost")


def test_one_module_may_implement_several_kinds(site: FakeSite) -> None:
    both = WHOLE.replace('"bad"', '"pair"') + "@hookimpl\ndef dba_null_token():\n    return Gate()\n"
    site.module("pair_mod", both)
    site.distribution("pair-dist", {"gate": {"pair": "pair_mod"}, "null_token": {"pair": "pair_mod"}})
    registry = site.registry()
    assert registry.load("gate", "pair").info.kind == "gate"
    assert registry.load("null_token", "pair").info.kind == "null_token"


def test_unknown_names_are_answered_with_the_nearest_and_all(site: FakeSite) -> None:
    site.gate("causal", distribution="d-one")
    site.gate("static", distribution="d-two")
    registry = site.registry()
    with pytest.raises(PluginError, match=r"unknown gate 'casual'\. Did you mean 'causal'\?") as caught:
        registry.load("gate", "casual")
    assert "Allowed: auto, causal, static." in str(caught.value)
    with pytest.raises(PluginError, match="Allowed: auto, d-one:causal, d-two:static"):
        registry.load("gate", "d-two:causal")


def test_a_name_of_two_distributions_must_be_told_apart(site: FakeSite) -> None:
    site.gate("twin", distribution="left-dist", version="1.1")
    site.gate("twin", distribution="right-dist", version="2.2")
    registry = site.registry()
    with pytest.raises(PluginError) as caught:
        registry.load("gate", "twin")
    for text in ("left-dist 1.1", "right-dist 2.2", "'left-dist:twin'", "'right-dist:twin'"):
        assert text in str(caught.value)
    assert registry.load("gate", "right-dist:twin").info.version == "2.2"
    assert registry.load("gate", "Left_Dist:twin").info.version == "1.1"
    assert registry.load("gate", "twin", distribution="left-dist").info.version == "1.1"


class LocalGate:
    name = "mine"
    contract = 1
    summary = "made in code"

    def __init__(self) -> None:
        from dba_core.contracts import NoOptions

        self.options_class = NoOptions

    def supports(self, request: object, options: object) -> object:
        from dba_core.contracts import Support

        return Support.yes()

    def build(self, request: object, options: object) -> str:
        return "local"


class TestPluginsMadeInCode:
    def test_registered_and_used(self, request_on: RequestOn) -> None:
        registry = Registry(distributions=[])
        registry.register("gate", LocalGate(), version="7")
        (info,) = registry.list()
        assert (info.name, info.distribution, info.version, info.problem) == ("mine", "local", "7", None)
        selection = registry.select("gate", "mine", request_on())
        assert selection.build() == "local"
        assert registry.load("gate", "local:mine").plugin is selection.plugin

    def test_all_or_nothing(self) -> None:
        registry = Registry(distributions=[])
        plugin = LocalGate()
        plugin.contract = 9
        with pytest.raises(PluginError, match="was written for gate contract 9"):
            registry.register("gate", plugin)
        with pytest.raises(PluginError, match="no plugin"):
            registry.register("gate", object())
        plugin = LocalGate()
        plugin.name = "a:b"
        with pytest.raises(PluginError, match="'a:b' is no plugin name"):
            registry.register("gate", plugin)
        with pytest.raises(PluginError, match="unknown plugin kind 'gates'"):
            registry.register("gates", LocalGate())
        assert registry.list() == []

    def test_not_twice(self) -> None:
        registry = Registry(distributions=[])
        registry.register("gate", LocalGate())
        with pytest.raises(PluginError, match="'local:mine' is there already"):
            registry.register("gate", LocalGate())
        registry.register("gate", LocalGate(), distribution="other")
        assert len(registry.list()) == 2


def test_errors_under_a_config_path_keep_their_class() -> None:
    error = ConfigError("is wrong", path="bias").under("plugins.gate.options")
    assert str(error) == "plugins.gate.options.bias: is wrong"


def test_auto_is_no_name_where_no_plugin_is_chosen_by_it() -> None:
    with pytest.raises(PluginError, match="unknown kv_format 'auto'") as caught:
        Registry.default().find("kv_format", "auto")
    assert "auto" not in str(caught.value).partition("Allowed:")[2]
    with pytest.raises(PluginError, match="no order of auto for a kv_format"):
        Registry.default().select("kv_format", "auto", None)
