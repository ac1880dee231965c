"""Allow and block lists: what they name, what they hide, and that hidden code is never imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_request

from dba_core.errors import PluginError
from dba_core.registry import Access, Registry

ORDER = "[dba.auto_order]\norder = NAME:ORDER\n"


@pytest.fixture
def two(site: FakeSite) -> FakeSite:
    """Gates `soft` and `twin` of acme, `hard` and `twin` of other-dist."""
    for name, module in (("soft", "acme_soft"), ("twin", "acme_twin")):
        site.module(module, GOOD_GATE.replace("NAME", name))
    for name, module in (("hard", "other_hard"), ("twin", "other_twin")):
        site.module(module, GOOD_GATE.replace("NAME", name))
    site.distribution("acme", {"gate": {"soft": "acme_soft", "twin": "acme_twin"}})
    site.distribution("other-dist", {"gate": {"hard": "other_hard", "twin": "other_twin"}})
    return site


def usable(registry: Registry) -> set[str]:
    return {info.qualified for info in registry.list() if info.problem is None}


ALL = {"acme:soft", "acme:twin", "other-dist:hard", "other-dist:twin"}


@pytest.mark.parametrize(
    ("entry", "hidden"),
    [
        ("soft", {"acme:soft"}),
        ("gate=soft", {"acme:soft"}),
        ("acme:soft", {"acme:soft"}),
        ("gate=acme:soft", {"acme:soft"}),
        ("ACME:*", {"acme:soft", "acme:twin"}),
        ("Other_Dist:*", {"other-dist:hard", "other-dist:twin"}),
        ("twin", {"acme:twin", "other-dist:twin"}),
    ],
)
def test_what_an_entry_names(two: FakeSite, entry: str, hidden: set[str]) -> None:
    refused = {
        info.qualified for info in two.registry().list() if Access(blocked=(entry,)).refusal(info) is not None
    }
    kept = {
        info.qualified for info in two.registry().list() if Access(allowed=(entry,)).refusal(info) is None
    }
    assert refused == kept == hidden


def test_a_blocked_plugin_is_shown_with_the_reason_and_not_imported(two: FakeSite) -> None:
    registry = two.registry(access=Access(blocked=("soft", "other-dist:*")))
    problems = {info.qualified: info.problem for info in registry.list()}
    assert problems == {
        "acme:soft": "blocked by Access(blocked=['soft'])",
        "acme:twin": None,
        "other-dist:hard": "blocked by Access(blocked=['other-dist:*'])",
        "other-dist:twin": "blocked by Access(blocked=['other-dist:*'])",
    }
    with pytest.raises(PluginError, match=r"'soft' of acme 1\.0 may not be used: it is blocked by Access\(b"):
        registry.load("gate", "soft")
    assert "acme_soft" not in sys.modules


def test_a_name_of_two_distributions_is_clear_when_one_is_blocked(two: FakeSite) -> None:
    registry = two.registry(access=Access(blocked=("acme:twin",)))
    assert registry.load("gate", "twin").info.distribution == "other-dist"
    with pytest.raises(PluginError, match="ambiguous"):
        two.registry().load("gate", "twin")


def test_auto_passes_over_what_is_blocked(two: FakeSite) -> None:
    two.module("order_mod", "ORDER = {'gate': ('soft', 'hard')}")
    two.distribution("orders", ORDER.replace("NAME", "order_mod"))
    selection = two.registry(access=Access(blocked=("soft",))).select("gate", "auto", gate_request())
    assert selection.name == "hard"
    (passed,) = selection.passed_over
    problem = "blocked by Access(blocked=['soft'])"
    assert (passed.name, passed.problem, passed.state) == ("soft", problem, "blocked")
    assert selection.fallbacks == ()
    assert "acme_soft" not in sys.modules
    with pytest.raises(
        PluginError, match=r"every gate .* refused \(soft: blocked by Access\(blocked=\['soft'\]\); hard:"
    ):
        two.registry(access=Access(blocked=("soft", "hard"))).select("gate", "auto", gate_request())


@pytest.mark.parametrize(
    ("access", "imported"),
    [
        (Access(), True),
        (Access(blocked=("acme:soft",)), True),
        (Access(blocked=("acme:*",)), False),
        (Access(allowed=("other-dist:*",)), False),
        (Access(allowed=("acme:twin",)), True),
    ],
)
def test_the_order_of_a_hidden_distribution_is_not_imported(
    two: FakeSite, access: Access, imported: bool
) -> None:
    two.module("acme_order", "ORDER = {'gate': ('soft',)}")
    info = two.folder / "acme-1.0.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "\n" + ORDER.replace("NAME", "acme_order"))
    two.registry(access=access).auto_order("gate", device="cpu")
    assert ("acme_order" in sys.modules) == imported


def test_an_order_without_plugins_is_outside_of_an_allow_list(two: FakeSite) -> None:
    two.module("order_mod", "ORDER = {'gate': ('soft',)}")
    two.distribution("orders", ORDER.replace("NAME", "order_mod"))
    assert two.registry(access=Access(allowed=("acme:*",))).auto_order("gate", device="cpu") == ()
    assert "order_mod" not in sys.modules


def test_the_allow_list_comes_from_the_environment() -> None:
    assert Access.from_environment({}) == Access()
    assert Access.from_environment({"DBA_PLUGINS_ALLOW": " dba:* , acme:soft,"}, blocked=["x"]) == Access(
        allowed=("dba:*", "acme:soft"), blocked=("x",)
    )


@pytest.mark.parametrize(
    "entry", ["sotf", "gate=sotf", "gats=soft", "acme:sotf", "acm:*", "", "summarizer=soft"]
)
def test_an_entry_that_names_nothing_is_an_error_wherever_it_is_used(two: FakeSite, entry: str) -> None:
    for access in (Access(blocked=(entry,)), Access(allowed=(entry,))):
        registry = two.registry(access=access)
        for use in (
            registry.list,
            lambda r=registry: r.load("gate", "hard"),
            lambda r=registry: r.select("gate", "auto", gate_request()),
        ):
            with pytest.raises(PluginError, match=re.escape(f"unknown plugin {entry!r}")) as caught:
                use()
            assert "distribution:*" in str(caught.value)


def test_the_registry_of_the_process_is_under_the_allow_list() -> None:
    code = (
        "from dba_core import Registry; from dba_core.kinds import KINDS; known = Registry.default().list(); "
        "print([i.name for i in known if not i.problem and KINDS[i.kind].per_layer], "
        "[i.name for i in known if i.problem and not KINDS[i.kind].per_layer])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DBA_PLUGINS_ALLOW": "dba:mean,gate=static"},
        capture_output=True,
        text=True,
        check=True,
    )
    # and the library's own cache formats, checkpoint sources and commands
    assert done.stdout == "['mean', 'static'] []\n"


def test_a_plugin_made_in_code_counts(two: FakeSite) -> None:
    gate = two.registry().load("gate", "soft").plugin
    registry = two.registry(access=Access(blocked=("local:soft",)))
    registry.register("gate", gate)
    assert registry.load("gate", "soft").info.distribution == "acme"
    with pytest.raises(PluginError, match=r"blocked by Access\(blocked=\['local:soft'\]\)"):
        registry.load("gate", "local:soft")
