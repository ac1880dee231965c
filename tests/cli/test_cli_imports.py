"""What a command loads: help, listing and configuration load neither torch nor a plugin, and little else."""

from __future__ import annotations

import pytest

HEAVY = {"torch", "triton", "matplotlib", "safetensors", "numpy", "tokenizers", "jinja2"}
REPORT = """
import sys
from dba_cli.main import main
code = main({args!r})
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def modules_after(dba_process, *args: str) -> set[str]:
    """The modules that are loaded after `dba ARGS` has run in a fresh interpreter."""
    done = dba_process(code=REPORT.format(args=list(args)))
    assert done.code == 0, done.err
    return set(done.err.split())


@pytest.mark.parametrize("args", [["--help"], ["--version"], []], ids=" ".join)
def test_help_loads_click_and_next_to_nothing(dba_process, args: list[str]) -> None:
    loaded = modules_after(dba_process, *args)
    assert "click" in loaded
    assert not loaded & (HEAVY | {"rich", "cattrs", "pluggy"})
    light = {f"dba_core.registry{part}" for part in ("", ".contain", ".discovery", ".docstring")}
    assert not {
        name
        for name in loaded - light
        if name.startswith(("dba_plugins", "dba_core.config", "dba_core.registry"))
    }
    assert not {name for name in loaded if name.startswith("dba_cli.commands.")}


@pytest.mark.parametrize(
    "args",
    [
        ["run", "--help"],
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "list", "--no-plugin", "conv", "--trace-plugins"],
        ["config", "diff", "preset:default", "preset:default"],
        ["config", "show"],
        ["config", "presets"],
        ["run", "--print-config"],
        ["completion", "zsh"],
    ],
    ids=" ".join,
)
def test_light_commands_load_neither_torch_nor_a_plugin(dba_process, args: list[str]) -> None:
    loaded = modules_after(dba_process, *args)
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith("dba_plugins")}
