"""Importing dba_core and listing plugins loads neither torch nor triton nor a plugin."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LISTING = """
import json, sys
import dba_core, dba_core.registry, dba_core.config
names = [info.name for info in dba_core.registry.Registry.default().list()]
print(json.dumps({"names": names, "modules": sorted(sys.modules)}))
"""
BARE = """
import json, sys
import dba_core
dir(dba_core)
print(json.dumps({"modules": sorted(sys.modules)}))
"""


def run(code: str) -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def roots(modules: list[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("package", ["torch", "triton", "dba_plugins", "dba_cli", "numpy"])
def test_listing_imports_no_plugin(package: str) -> None:
    result = run(LISTING)
    assert "causal" in result["names"]
    assert "dba_core" in roots(result["modules"])
    assert package not in roots(result["modules"])


def test_importing_dba_core_imports_almost_nothing() -> None:
    modules = run(BARE)["modules"]
    assert not roots(modules) & {
        "torch",
        "triton",
        "dba_plugins",
        "dba_cli",
        "attrs",
        "attr",
        "cattrs",
        "pluggy",
    }
    assert [name for name in modules if name.startswith("dba_core")] == ["dba_core"]
