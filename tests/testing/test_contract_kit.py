"""The kit itself: every installed plugin passes it, pytest collects it, the command prints it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from broken_plugins.decode_backends import Dense, DensePlugin, ForgetsNull
from click.testing import CliRunner
from fake_site import GOOD_GATE, empty_site

from dba_cli.main import cli
from dba_core.errors import ConfigError, PluginError, UsageError
from dba_core.kinds import KINDS
from dba_core.registry import Registry
from dba_core.registry.plugin_loading import structure_options
from dba_core.testing import SUITES, DecodeBackendContract, GateContract, check_plugin

pytestmark = pytest.mark.torch

INSTALLED = [
    (info.kind, info.name) for info in Registry.default().list() if info.distribution == "dba-attention"
]


def runs_here(kind, name) -> bool:
    """Whether the plugin supports a usual layer on this machine's CPU."""
    loaded = Registry.default().load(kind, name)
    typical = KINDS[kind].typical
    return typical is None or loaded.plugin.supports(typical("cpu", None), structure_options(loaded, {})).ok


def test_the_built_ins_are_there() -> None:
    assert {("decode_backend", "streaming"), ("summarizer", "conv"), ("gate", "causal")} <= set(INSTALLED)


@pytest.mark.parametrize(("kind", "name"), INSTALLED)
def test_every_built_in_passes(kind, name: str) -> None:
    if not runs_here(kind, name):
        pytest.skip(f"{kind} {name} does not run on the CPU of this machine")
    report = check_plugin(kind, name, quick=True)
    assert report.ok, "\n".join(map(str, report.violations))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [each for each in INSTALLED if each[0] == "decode_backend"])
def test_every_backend_passes_the_full_grid(kind, name: str) -> None:
    if not runs_here(kind, name):
        pytest.skip(f"{kind} {name} does not run on the CPU of this machine")
    report = check_plugin(kind, name)
    assert report.ok, "\n".join(map(str, report.violations))


@pytest.mark.parametrize("options", [{"block": 1}, {"block": 64}])
def test_streaming_with_other_blocks(options: dict[str, int]) -> None:
    only = ("null_token_once", "ragged_rows") if options["block"] > 1 else ("ragged_rows",)
    assert check_plugin("decode_backend", "streaming", options=options, only=only).ok


class TestCausal(GateContract):
    plugin = "causal"
    options = {"init": 0.25}  # noqa: RUF012


class TestDense(DecodeBackendContract):
    plugin = DensePlugin(Dense)
    quick = True


def test_a_method_for_every_check() -> None:
    for suite, contract in (
        (SUITES["gate"], GateContract),
        (SUITES["decode_backend"], DecodeBackendContract),
    ):
        assert {f"test_{check.name}" for check in suite.checks} <= set(dir(contract))


def test_a_broken_plugin_fails_its_test_with_the_violations() -> None:
    class Mine(DecodeBackendContract):
        plugin = DensePlugin(ForgetsNull)
        quick = True

    with pytest.raises(AssertionError, match="Row 0 of 0 tokens equals the result without the null token"):
        Mine().test_null_token_once()


def test_a_class_that_names_no_plugin() -> None:
    with pytest.raises(UsageError, match="GateContract names no plugin; write `plugin = "):
        GateContract().test_well_formed()


def test_bad_input() -> None:
    with pytest.raises(PluginError, match="unknown gate 'casual'"):
        check_plugin("gate", "casual")
    with pytest.raises(ConfigError, match="init"):
        check_plugin("gate", "causal", options={"init": 2.0})
    with pytest.raises(UsageError, match="unknown check of kind gate: 'neutral'"):
        check_plugin("gate", "causal", only=("neutral",))
    with pytest.raises(UsageError, match="device 'tpu7' cannot be used here"):
        check_plugin("gate", "causal", device="tpu7")
    with pytest.raises(PluginError, match="it lacks name, contract, summary"):
        check_plugin("gate", object())


def test_the_random_state_of_the_caller_is_kept() -> None:
    before = torch.get_rng_state()
    check_plugin("summarizer", "mean")
    assert torch.equal(before, torch.get_rng_state())


def test_torch_at_the_metadata_stage_is_found() -> None:
    with empty_site() as site:
        site.module("heavy_gate", GOOD_GATE.replace("NAME", "heavy"))
        site.module("heavy_order", "import torch\nORDER = {'gate': {'cpu': ('heavy',)}}\n")
        points = {"gate": {"heavy": "heavy_gate"}, "dba.auto_order": {"heavy": "heavy_order:ORDER"}}
        site.distribution("heavy-gate", points)
        report = check_plugin("gate", "heavy", registry=site.registry(), only=("metadata_without_torch",))
    assert [violation.got for violation in report.violations] == ["imported: torch"]


def test_pytest_is_not_imported() -> None:
    code = "import sys, dba_core.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_command_prints_a_report() -> None:
    done = CliRunner().invoke(cli, ["plugins", "check", "causal"])
    assert done.exit_code == 0, done.output
    assert "neutral_at_start" in done.output
    assert f"All {len(SUITES['gate'].checks)} checks passed.\n" in done.output
    quick = CliRunner().invoke(cli, ["plugins", "check", "causal", "--quick"])
    assert quick.exit_code == 0, quick.output
    said = " ".join(quick.output.split())
    assert f"All {len(SUITES['gate'].checks)} checks passed in small sizes. --quick leaves out" in said
    assert "`dba plugins check causal --kind gate` runs them all" in said


def test_the_command_prints_json() -> None:
    done = CliRunner().invoke(cli, ["plugins", "check", "none", "--json"])
    documents = json.loads(done.output)
    assert [(d["kind"], d["ok"]) for d in documents] == [("gate", True), ("null_token", True)]
    assert {r["name"] for r in documents[0]["results"]} == {check.name for check in SUITES["gate"].checks}
