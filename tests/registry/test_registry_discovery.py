"""Discovery reads metadata alone: what is found, what is broken, what is named twice."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
from fake_site import FakeSite

from dba_core.errors import PluginError
from dba_core.kinds import KINDS
from dba_core.registry import PluginInfo, Registry


def test_everything_is_listed_and_nothing_imported(site: FakeSite) -> None:
    site.module("alpha_mod", "raise AssertionError('imported')")
    site.distribution(
        "alpha-dist",
        {
            "gate": {"zeta": "alpha_mod", "beta": "alpha_mod.sub:attr"},
            "summarizer": {"pool": "alpha_mod [extra]"},
            "console_scripts": {"alpha": "alpha_mod:main"},
        },
        version="2.3",
    )
    found = site.registry().list()
    base = {"distribution": "alpha-dist", "version": "2.3"}
    assert found == [
        PluginInfo(kind="summarizer", name="pool", module="alpha_mod", **base),
        PluginInfo(kind="gate", name="beta", module="alpha_mod.sub:attr", **base),
        PluginInfo(kind="gate", name="zeta", module="alpha_mod", **base),
    ]
    assert "alpha_mod" not in sys.modules


def test_one_kind(site: FakeSite) -> None:
    site.distribution("d", {"gate": {"g": "m"}, "null_token": {"n": "m"}})
    registry = site.registry()
    assert [info.name for info in registry.list("null_token")] == ["n"]
    assert registry.list("decode_backend") == []
    with pytest.raises(PluginError, match=r"unknown plugin kind 'gates'. Did you mean 'gate'"):
        registry.list("gates")


def test_no_distributions() -> None:
    registry = Registry(distributions=[])
    assert registry.list() == []
    with pytest.raises(PluginError, match=r"unknown gate 'causal'.*Allowed: auto\."):
        registry.load("gate", "causal")


@pytest.mark.parametrize("broken", ["[dba.gates\nx = y\n", "[dba.gates]\nthis line has no equals sign\n"])
def test_entry_points_that_cannot_be_read_stay_alone(site: FakeSite, broken: str) -> None:
    site.distribution("bad-dist", broken)
    site.distribution("good-dist", {"gate": {"fine": "m"}})
    assert [info.name for info in site.registry().list()] == ["fine"]


def test_unreadable_bytes_are_a_problem_that_is_told(site: FakeSite) -> None:
    site.distribution("good-dist", {"gate": {"fine": "m"}})
    site.distribution("bad-dist", "")
    (site.folder / "bad_dist-1.0.dist-info" / "entry_points.txt").write_bytes(b"[dba.gates]\nx = \xff\xfe\n")
    registry = site.registry()
    assert [info.name for info in registry.list()] == ["fine"]
    assert len(registry.problems) == 1
    assert registry.problems[0].startswith("bad-dist: its entry points cannot be read (UnicodeDecodeError: ")


def test_a_missing_version_is_unknown(site: FakeSite) -> None:
    site.distribution("half", {"gate": {"g": "m"}}, metadata="Name: half\n")
    (info,) = site.registry().list()
    assert (info.name, info.distribution, info.version, info.problem) == ("g", "half", "unknown", None)


@pytest.mark.parametrize(
    "metadata", ["", "Version: 1.0\n", "Name:  \n", "\x00\x01garbage", b"Name: \xff\xfe"]
)
def test_distributions_without_a_name_are_kept_apart_and_damaged(
    site: FakeSite, metadata: str | bytes
) -> None:
    for folder in ("one.dist-info", "two.dist-info"):
        site.distribution("x", {"gate": {"g": "m"}}, metadata="", folder=folder)
        if metadata:
            text = metadata if isinstance(metadata, bytes) else metadata.encode()
            (site.folder / folder / "METADATA").write_bytes(text)
    site.distribution("good-dist", {"gate": {"fine": "m"}})
    registry = site.registry()
    infos = {info.distribution: info for info in registry.list()}
    assert infos.pop("good-dist").problem is None
    paths = [str(site.folder / folder) for folder in ("one.dist-info", "two.dist-info")]
    assert sorted(infos) == paths
    for path, info in infos.items():
        assert info.problem is not None
        assert f"damaged, they have no Name ({path})" in info.problem
        with pytest.raises(PluginError, match="damaged"):
            registry.load("gate", info.qualified)
    assert [problem.partition(":")[0] for problem in sorted(registry.problems)] == paths


def test_a_search_that_fails_half_way_is_a_problem(site: FakeSite) -> None:
    site.distribution("good-dist", {"gate": {"fine": "m"}})

    def found():
        yield from importlib.metadata.distributions(path=[str(site.folder)])
        raise PermissionError("no entry")

    registry = Registry(distributions=found())
    assert [info.name for info in registry.list()] == ["fine"]
    assert registry.problems == (
        "looking for distributions failed (PermissionError: no entry); those after it are not known",
    )


def test_what_a_plugin_needs_is_metadata(site: FakeSite) -> None:
    needs = "[dba.gates]\na = m\nb = m\n[dba.needs]\ngate.a = json\ngate.a.no_such = no_such\ngate.b = a.b!\n"
    site.distribution("d", needs)
    a, b = site.registry().list()
    assert (a.needs, a.missing) == (("json", "no_such"), ("no_such",))
    assert (b.needs, b.missing) == (("a.b!",), ("a.b!",))
    assert "no_such" not in sys.modules


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("good = not a module!", "is not a module or module:object"),
        ("good = ", "is not a module or module:object"),
        ("good = a:", "is not a module or module:object"),
        ("two words = m", "'two words' is no plugin name"),
        ("auto = m", "'auto' is no plugin name"),
        ("a:b = m", "'a:b' is no plugin name"),
    ],
)
def test_an_entry_point_that_makes_no_sense_is_shown(site: FakeSite, entry: str, problem: str) -> None:
    site.distribution("odd", f"[dba.gates]\n{entry}\nfine = m\n")
    infos = {info.name: info for info in site.registry().list()}
    assert infos.pop("fine").problem is None
    (odd,) = infos.values()
    assert odd.problem is not None
    assert problem in odd.problem


def test_a_name_that_one_distribution_lists_twice(site: FakeSite) -> None:
    site.distribution("odd", "[dba.gates]\ng = first\ng = second\n")
    registry = site.registry()
    (info,) = registry.list()
    assert info.problem is not None
    assert "odd lists it twice, as first and second" in info.problem
    with pytest.raises(PluginError, match="lists it twice"):
        registry.load("gate", "g")


def test_the_same_distribution_found_twice_counts_once(site: FakeSite) -> None:
    site.distribution("My.Dist", {"gate": {"g": "new"}}, version="2.0", folder="a.dist-info")
    site.distribution("my-dist", {"gate": {"g": "old"}}, version="1.0", folder="b.egg-info")
    path = [str(site.folder)]
    found = sorted(importlib.metadata.distributions(path=path), key=lambda each: each.version, reverse=True)
    (info,) = Registry(distributions=found).list()
    assert (info.version, info.module, info.problem) == ("2.0", "new", None)


def test_a_name_of_two_distributions_is_shown_at_both(site: FakeSite) -> None:
    site.gate("twin", distribution="left")
    site.gate("twin", distribution="right")
    left, right = site.registry().list("gate")
    assert left.problem == "right provides this name too: choose it as 'left:twin'"
    assert right.problem == "left provides this name too: choose it as 'right:twin'"


def test_the_default_registry_has_the_built_ins_of_every_kind() -> None:
    registry = Registry.default()
    assert registry is Registry.default()
    ours = [info for info in registry.list() if info.distribution == "dba-attention"]
    names = {kind: {info.name for info in ours if info.kind == kind} for kind in KINDS}
    assert names["gate"] >= {"causal", "static", "none"}
    assert names["summarizer"] >= {"mean", "linear", "conv"}
    assert names["null_token"] >= {"learned", "none"}
    assert names["decode_backend"] >= {"streaming"}
