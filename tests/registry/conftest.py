"""Fixtures of the registry tests: a fake site and requests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_site import FakeSite, RequestOn

from dba_core.contracts import AttentionShape, GateRequest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """An empty fake site; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield FakeSite(folder)
    for name in set(sys.modules) - before:
        origin = sys.modules[name].__dict__.get("__file__") or ""
        if origin.startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def request_on() -> RequestOn:
    """A gate request for a device."""
    shape = AttentionShape(d_model=8, n_heads=2, n_kv_heads=2, sem_head_dim=2, geo_head_dim=2, v_head_dim=4)
    return lambda device="cpu": GateRequest(shape=shape, device=device)
