"""What all tests share: one thread and a fixed seed, so that a result does not depend on the machine's cores
or on the tests before it; one hypothesis profile, without a deadline (a first torch example is slow).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported

import pytest
from hypothesis import settings

settings.register_profile("dba", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("dba")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A test module whose `pytestmark` names a package that is not installed is not imported at all: `torch`,
    and what `needs("name", ...)` lists.
    """
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    missing = [name for name in needed_packages(collection_path) if importlib.util.find_spec(name) is None]
    return True if missing else None


def needed_packages(path: Path) -> list[str]:
    """The packages that the `pytestmark` of a test module says it needs."""
    found: list[str] = []
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.needs":
                    found += [ast.literal_eval(name) for name in node.args]
                elif isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.torch":
                    found.append("torch")
    return found


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Signals do what they do in a terminal, however pytest was started: nohup and `&` have some ignored."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    usual = {"SIGINT": signal.default_int_handler}
    before = {name: signal.signal(getattr(signal, name), usual.get(name, signal.SIG_DFL)) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """torch's generator starts at 0 in every test that uses torch."""
    if request.node.get_closest_marker("torch"):
        import torch

        torch.manual_seed(0)
