"""A new kind of plugin is one row, one hook spec and one suite: no other file knows which kinds there are."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import attrs
import pytest
from click.testing import CliRunner, Result
from fake_site import FakeSite, empty_site

from dba_cli.main import cli
from dba_core import hookspecs
from dba_core.config import load_config
from dba_core.errors import ConfigError, PluginError, UnsupportedError
from dba_core.kinds import KINDS, PluginKind
from dba_core.registry import Registry
from dba_core.testing import SUITES, Contract, check_plugin

pytestmark = pytest.mark.torch


@attrs.frozen
class ToyRequest:
    """How many bricks a tower will have."""

    bricks: int


ROW = PluginKind(
    name="toy",
    title="Toy",
    group="dba.toys",
    hook="dba_toy",
    contract=3,
    request=ToyRequest,
    typical=lambda device, capability: ToyRequest(2),
    suite="toy_suite:TOY",
    template="toy.py.in",
    per_layer=False,
    usage="dba play {name}",
)
SUITE = """
    from dba_core.testing import Suite, Violation
    TOY = Suite("toy")

    @TOY.check("a tower is as high as it has bricks")
    def as_high_as_it_has_bricks(subject):
        from dba_core.kinds import KINDS
        for request in (KINDS["toy"].request(0), KINDS["toy"].request(3)):
            for built in subject.built(request):
                if built != "brick" * request.bricks:
                    yield Violation(case=str(request), expected=str(request.bricks), got=built, hint="Count.")
"""
TOY = """
    import attrs
    from dba_core import hookimpl
    from dba_core.contracts import Reason, Support

    @attrs.frozen(kw_only=True)
    class Options:
        glue: bool = False

    class Toy:
        name, contract, summary, options_class = "tower", 3, "bricks on bricks", Options

        def supports(self, request, options):
            if request.bricks < 9:
                return Support.yes()
            return Support.no(Reason(subject="bricks", got="9", supported="8", action="Build two towers."))

        def build(self, request, options):
            return "brick" * request.bricks

    @hookimpl
    def dba_toy():
        return Toy()
"""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """The kind, its hook spec and suite, and `tower` of the distribution `bricks`."""

    def dba_toy() -> object:
        """Return the toy that this module provides."""

    monkeypatch.setitem(KINDS, "toy", ROW)
    monkeypatch.setattr(hookspecs, "dba_toy", hookspecs.hookspec(dba_toy), raising=False)
    for name in [name for name in sys.modules if name.startswith("dba_cli.commands.plugins.")]:
        monkeypatch.delitem(sys.modules, name)  # each has the kinds of when it was imported
    with empty_site() as made:
        made.module("toy_suite", SUITE)
        made.module("toy_tower", TOY)
        made.distribution("bricks", {"dba.toys": {"tower": "toy_tower"}})
        Registry.default.cache_clear()
        yield made
    Registry.default.cache_clear()


def dba(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), catch_exceptions=False)


def test_it_is_listed_loaded_and_chosen_by_name(site: FakeSite) -> None:
    registry = site.registry()
    (info,) = registry.list()
    assert (info.kind, info.name) == ("toy", "tower")
    assert registry.load("toy", "tower").plugin.summary == "bricks on bricks"
    assert registry.select("toy", "tower", ToyRequest(2)).build() == "brickbrick"
    with pytest.raises(UnsupportedError, match="Build two towers"):
        registry.select("toy", "tower", ToyRequest(9))
    with pytest.raises(PluginError, match="no order of auto for a toy; choose one by name"):
        registry.select("toy", "auto", ToyRequest(2))
    with pytest.raises(PluginError, match="Did you mean 'tower'"):
        registry.find("toy", "towr")


def test_its_suite_runs_on_it_and_finds_a_broken_one(site: FakeSite) -> None:
    names = [check.name for check in SUITES["toy"].checks]
    assert names[0] == "as_high_as_it_has_bricks"
    assert "options_round_trip" in names  # as every kind's
    loaded = site.registry().load("toy", "tower").plugin
    assert check_plugin("toy", loaded).ok

    class Crooked(type(loaded)):
        def build(self, request, options):
            return "brick"

    report = check_plugin("toy", Crooked(), only=("as_high_as_it_has_bricks",))
    assert [violation.expected for violation in report.violations] == ["0", "3"]

    class TestTower(Contract, kind="toy"):
        plugin = loaded

    TestTower().test_as_high_as_it_has_bricks()


def test_the_command_line_knows_it(site: FakeSite) -> None:
    listed = json.loads(dba("plugins", "list", "--kind", "toy", "--json").stdout)["plugins"]
    assert [plugin["name"] for plugin in listed] == ["tower"]
    info = dba("plugins", "info", "tower").output
    assert "dba play tower" in info
    assert "glue" in info
    assert dba("plugins", "check", "tower", "--quick").exit_code == 0
    found = json.loads(dba("plugins", "doctor", "--json").stdout)["diagnoses"]
    said = [each["text"] for each in found if each["subject"] == "toy bricks:tower"]
    assert said == ["version 1.0, contract 3, supports a typical request"]


def test_it_can_be_blocked(site: FakeSite) -> None:
    blocked = json.loads(dba("plugins", "list", "--kind", "toy", "--no-plugin", "toy=tower", "--json").stdout)
    assert blocked["plugins"][0]["problem"] == "blocked by --no-plugin toy=tower"


def test_what_no_layer_chooses_is_no_choice_of_a_configuration(site: FakeSite) -> None:
    for given in ({"plugins": ["toy=tower"]}, {"sets": ["plugins.toy=tower"]}):
        with pytest.raises(ConfigError, match="'toy'"):
            load_config(**given)


def test_a_kind_that_layers_choose_has_its_place_in_the_configuration() -> None:
    script = """
        import attrs
        from dba_core.kinds import KINDS, per_layer
        KINDS["toy"] = attrs.evolve(KINDS["gate"], name="toy", group="dba.toys", hook="dba_toy")
        from dba_core.config import PluginChoice, RunConfig, load_config
        config = load_config(plugins=["toy=tower:glue=true", "toy@layers.0=wall"]).config
        assert config.plugins.of("toy") == PluginChoice("tower", options={"glue": True})
        assert config.plugins.layers["0"]["toy"].name == "wall"
        assert RunConfig.from_dict(config.to_dict()) == config
        assert list(config.to_dict()["plugins"]) == [*per_layer(), "layers"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
