"""The doctor: what is wrong with which plugin, and that a sound "no" is sound."""

from __future__ import annotations

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_contract

from dba_cli.commands.plugins.doctor import diagnose
from dba_core.errors import DeprecatedContractWarning
from dba_core.registry import Access, Registry


def found(registry: Registry) -> dict[str, tuple[str, str]]:
    return {each.subject: (each.status, each.text) for each in diagnose(registry)}


def test_a_sound_plugin_and_a_sound_no(site: FakeSite) -> None:
    site.gate("soft", distribution="acme")
    site.gate("fast", distribution="other", source=GOOD_GATE.replace('"cpu"', '"cuda"'), version="2.0")
    assert found(site.registry()) == {
        "gate acme:soft": ("ok", "version 1.0, contract 1, supports a typical request"),
        "gate other:fast": (
            "ok",
            "version 2.0, contract 1, says no to a typical request (device: got cpu; supported: cuda. Choose "
            "--device cpu.)",
        ),
    }


SUPPORTS = "        if request.device"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise RuntimeError('boom')", "its hook cannot be loaded (RuntimeError: boom)"),
        ("x = 1", "implements no hook dba_gate"),
        (
            GOOD_GATE.replace("contract = 1", "contract = 0"),
            "written for gate contract 0, this dba has contract 1",
        ),
        (GOOD_GATE.replace('"NAME"', '"other"'), "it calls itself 'other', its entry point 'bad'"),
        (
            GOOD_GATE.replace(SUPPORTS, "        request.nothing\n" + SUPPORTS),
            "its supports() raised AttributeError: 'GateRequest' object has no attribute 'nothing'; report",
        ),
        (
            GOOD_GATE.replace(SUPPORTS, "        return True\n" + SUPPORTS),
            "its supports() returned True, no Support",
        ),
        (
            GOOD_GATE.replace("bias: float = 0.5", "bias: float = '0.5'"),
            "'0.5' is a text; allowed: a finite number",
        ),
    ],
)
def test_what_is_wrong_with_one_is_said_and_the_others_stay_sound(
    site: FakeSite, source: str, text: str
) -> None:
    site.gate("bad", distribution="bad-dist", source=source)
    site.gate("soft", distribution="acme")
    result = found(site.registry())
    assert result["gate acme:soft"][0] == "ok"
    status, said = result["gate bad-dist:bad"]
    assert status == "error"
    assert text in said


def test_duplicates_malformed_entry_points_and_unreadable_metadata(site: FakeSite) -> None:
    for distribution in ("left", "right"):
        site.gate("twin", distribution=distribution)
    site.distribution("odd", "[dba.gates]\nodd = not a module!\n")
    site.distribution("bytes", "")
    (site.folder / "bytes-1.0.dist-info" / "entry_points.txt").write_bytes(b"[dba.gates]\nx = \xff\n")
    result = found(site.registry())
    assert result["gate left:twin"] == ("error", "right provides this name too: choose it as 'left:twin'")
    assert result["gate right:twin"] == ("error", "left provides this name too: choose it as 'right:twin'")
    assert "its entry point 'not a module!' is not a module" in result["gate odd:odd"][1]
    assert result["metadata"][0] == "error"
    assert result["metadata"][1].startswith("bytes: its entry points cannot be read (UnicodeDecodeError")


def test_blocked_and_deprecated_ones_are_not_wrong(site: FakeSite) -> None:
    site.gate("soft", distribution="acme")
    site.gate("bad", distribution="bad-dist", source="raise RuntimeError('boom')")
    registry = site.registry(access=Access(blocked=("bad",)))
    with gate_contract(2, previous_until="0.9"), pytest.warns(DeprecatedContractWarning):
        result = found(registry)
    assert result["gate bad-dist:bad"] == ("blocked", "blocked by Access(blocked=['bad'])")
    status, text = result["gate acme:soft"]
    assert status == "warning"
    assert text.startswith("it was written for gate contract 1, which dba 0.9 drops")


def test_an_order_that_is_broken_or_names_nothing(site: FakeSite) -> None:
    site.gate("soft", distribution="acme")
    site.module("order_mod", "ORDER = {'gate': ('soft', 'sotf')}")
    site.distribution("orders", "[dba.auto_order]\na = order_mod:ORDER\nb = order_mod:NONE\n")
    result = found(site.registry())
    assert result["auto order of gate"] == (
        "error",
        "orders lists 'sotf' for cpu: unknown gate 'sotf'. Did you mean 'soft'? Allowed: auto, soft.",
    )
    assert result["auto order"][0] == "error"
    assert "'order_mod:NONE' of orders cannot be used: AttributeError" in result["auto order"][1]
