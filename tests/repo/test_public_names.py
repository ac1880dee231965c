"""The names that stay put, `from dba_core import ...`: lazy, so that importing the package loads no torch."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import dba_core

WITHOUT_TORCH = (
    "RunConfig",
    "ModelConfig",
    "AttentionConfig",
    "GenerationConfig",
    "LongSequenceConfig",
    "KVCachePolicy",
    "PluginChoice",
    "Registry",
)
WITH_TORCH = (
    "DecoupledAttention",
    "KVCache",
    "LanguageModel",
    "reference_attention",
    "fidelity_metrics",
    "load_run",
    "generate",
)


def modules_loaded_by(code: str) -> set[str]:
    """The modules in `sys.modules` after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_all_lists_the_names_that_stay_put() -> None:
    assert {*WITHOUT_TORCH, *WITH_TORCH} <= set(dba_core.__all__)
    assert set(dba_core.__all__) <= set(dir(dba_core))


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_name_without_torch(name: str) -> None:
    assert getattr(dba_core, name).__name__.rpartition(".")[2] == name
    assert "torch" not in modules_loaded_by(f"from dba_core import {name}")


@pytest.mark.torch
@pytest.mark.parametrize("name", WITH_TORCH)
def test_name_with_torch(name: str) -> None:
    pytest.importorskip("torch")
    value = getattr(dba_core, name)
    assert value.__name__ == name
    assert value.__module__.startswith("dba_core.")


def test_hooks_are_the_ones_of_hookspecs() -> None:
    from dba_core import hookimpl, hookspecs

    assert hookimpl is hookspecs.hookimpl
    assert {"hookimpl", "hookspecs"} <= set(dba_core.__all__)


def test_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="DecoupledAttentoin"):
        _ = dba_core.DecoupledAttentoin


@pytest.mark.torch
def test_testing_is_importable() -> None:
    pytest.importorskip("torch")
    assert importlib.import_module("dba_core.testing").__doc__


@pytest.mark.parametrize("module", ["dba_core", "dba_core.config", "dba_core.contracts", "dba_cli.main"])
def test_light_modules_load_neither_torch_nor_a_plugin(module: str) -> None:
    loaded = modules_loaded_by(f"import {module}")
    heavy = {"torch", "triton", "matplotlib", "safetensors"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("dba_plugins")}


@pytest.mark.torch
def test_the_model_is_imported_without_the_compiler_of_torch() -> None:
    """It is half of the time that torch takes, for programs that compile nothing."""
    assert "torch._dynamo" not in modules_loaded_by("import dba_core.model.language_model")
