"""`why` about the plugins that were not chosen, and strictness about the ones that `auto` preferred."""

from __future__ import annotations

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_request

from dba_cli.commands.plugins.why import explain_others
from dba_core.contracts import AttentionShape, SummarizerRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Access, Registry, refuse_fallbacks

CUDA = GOOD_GATE.replace('"cpu"', '"cuda"').replace("--device cpu", "--device cuda")


@pytest.fixture
def site_of_five(site: FakeSite) -> FakeSite:
    """auto tries `fast` (cuda alone), `broken`, `soft`, `late`; `extra` is in no order."""
    site.module("order_mod", "ORDER = {'gate': ('fast', 'broken', 'soft', 'late')}")
    site.distribution("orders", "[dba.auto_order]\norder = order_mod:ORDER\n")
    site.gate("fast", distribution="acme-fast", source=CUDA)
    site.gate("broken", distribution="acme-broken", source="raise RuntimeError('boom')")
    for name in ("soft", "late"):
        site.gate(name, distribution=f"acme-{name}")
    site.gate("extra", distribution="acme-extra", source=CUDA)
    return site


def told(registry: Registry, choice: str) -> list[tuple[str, str, str]]:
    selection = registry.select("gate", choice, gate_request())
    return [(o["name"], o["state"], o["why"]) for o in explain_others(registry, selection)]


NO = "device: got cpu; supported: cuda. Choose --device cuda."
BOOM = (
    "gate 'broken' of acme-broken 1.0 (acme_broken_broken) cannot be used: its hook cannot be loaded "
    "(RuntimeError: boom). Repair or uninstall acme-broken, or choose another gate."
)


def test_every_other_plugin_is_explained_after_auto(site_of_five: FakeSite) -> None:
    assert told(site_of_five.registry(), "auto") == [
        ("fast", "passed over", NO),
        ("broken", "broken", BOOM),
        ("extra", "not asked", f"not in the order of auto, only chosen by name; {NO}"),
        ("late", "not asked", "later in the order of auto; it supports the request"),
    ]


def test_every_other_plugin_is_explained_after_a_choice_by_name(site_of_five: FakeSite) -> None:
    registry = site_of_five.registry(access=Access(blocked=("late",)))
    assert told(registry, "soft") == [
        ("broken", "broken", BOOM),
        ("extra", "not asked", f"'soft' was chosen by name; {NO}"),
        ("fast", "not asked", f"'soft' was chosen by name; {NO}"),
        ("late", "blocked", "blocked by --no-plugin late"),
    ]


def test_reasons_are_data(site_of_five: FakeSite) -> None:
    registry = site_of_five.registry()
    others = explain_others(registry, registry.select("gate", "auto", gate_request()))
    by_name = {other["name"]: other["reasons"] for other in others}
    assert [reason["got"] for reason in by_name["fast"]] == ["cpu"]
    assert by_name["late"] == by_name["broken"] == []


def test_a_fallback_lists_every_reason(site_of_five: FakeSite) -> None:
    selection = site_of_five.registry().select("gate", "auto", gate_request())
    with pytest.raises(UnsupportedError) as caught:
        refuse_fallbacks([("0-1", selection), ("2", selection)])
    text = str(caught.value)
    assert text.startswith(
        "strict=True allows no fallback; choose what runs by name (plugins.gate=soft), or leave"
    )
    for layers in ("layers 0-1", "layer 2"):
        assert f"  - gate of {layers}, fast, {NO}" in text
        assert f"  - gate of {layers}, broken: got a problem; supported: a sound plugin. {BOOM}" in text
    assert len(caught.value.reasons) == 4


def test_the_first_choice_a_choice_by_name_and_a_block_are_no_fallbacks(site_of_five: FakeSite) -> None:
    registry = site_of_five.registry(access=Access(blocked=("fast", "broken")))
    for choice in ("soft", "auto"):
        selection = registry.select("gate", choice, gate_request())
        assert selection.name == "soft"
        refuse_fallbacks([("0-3", selection)])
    refuse_fallbacks([("0-3", site_of_five.registry().select("gate", "auto", gate_request("cuda")))])


@pytest.mark.torch
def test_a_default_summarizer_that_cannot_run_is_a_fallback() -> None:
    """On CUDA the default is conv, whose kernel of 3 does not fit blocks of 2 tokens."""
    pytest.importorskip("torch")
    shape = AttentionShape(d_model=8, n_heads=2, n_kv_heads=2, sem_head_dim=2, geo_head_dim=2, v_head_dim=4)
    request = SummarizerRequest(shape=shape, mem_block=2, device="cuda")
    selection = Registry(access=Access(allowed=("dba:*",))).select("summarizer", "auto", request)
    assert selection.name == "linear"
    with pytest.raises(UnsupportedError) as caught:
        refuse_fallbacks([("0-3", selection)])
    assert "choose what runs by name (plugins.summarizer=linear)" in str(caught.value)
    assert "summarizer of layers 0-3, conv, kernel_size: got 3 for blocks of 2 tokens" in str(caught.value)
