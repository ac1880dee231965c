"""Distributions made for a test: real .dist-info folders with entry points, on a path of their own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

from dba_core.contracts import AttentionShape, GateRequest
from dba_core.kinds import KINDS
from dba_core.registry import Registry

RequestOn = Callable[..., GateRequest]

#: A gate without torch: it supports `cpu` and builds a text that tells what it was given.
GOOD_GATE = """
import attrs
from dba_core import hookimpl
from dba_core.contracts import Reason, Support


@attrs.frozen
class Options:
    bias: float = 0.5
    taps: tuple[int, ...] = ()
    label: str | None = None


class Gate:
    name = "NAME"
    contract = 1
    summary = "a gate for tests"
    options_class = Options

    def supports(self, request, options):
        if request.device == "cpu":
            return Support.yes()
        return Support.no(
            Reason(subject="device", got=request.device, supported="cpu", action="Choose --device cpu.")
        )

    def build(self, request, options):
        return f"{self.name} {options.bias} {request.device}"


@hookimpl
def dba_gate():
    return Gate()
"""


def gate_request(device: str = "cpu") -> GateRequest:
    """What a gate is asked for."""
    shape = AttentionShape(d_model=8, n_heads=2, n_kv_heads=2, sem_head_dim=2, geo_head_dim=2, v_head_dim=4)
    return GateRequest(shape=shape, device=device)


@contextlib.contextmanager
def gate_contract(number: int, *, previous_until: str | None = None) -> Iterator[None]:
    """Within: this library's contract for gates has another number."""
    row = attrs.evolve(KINDS["gate"], contract=number, previous_until=previous_until)
    with mock.patch.dict(KINDS, gate=row):
        yield


class FakeSite:
    """A folder on `sys.path` with distributions in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str, source: str) -> None:
        """Write a module; dots make packages."""
        path = self.folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()

    def distribution(
        self,
        name: str,
        entry_points: str | Mapping[str, Mapping[str, str]],
        *,
        version: str = "1.0",
        metadata: str | None = None,
        folder: str | None = None,
    ) -> None:
        """Write metadata: entry points as {group or kind: {name: module}} or as the file's text."""
        if not isinstance(entry_points, str):
            groups = {kind.name: kind.group for kind in KINDS.values()}
            lines = []
            for group, points in entry_points.items():
                lines.append(f"[{groups.get(group, group)}]")
                lines += [f"{point} = {module}" for point, module in points.items()]
            entry_points = "\n".join(lines)
        info = self.folder / (folder or f"{name.replace('-', '_')}-{version}.dist-info")
        info.mkdir(parents=True)
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if metadata:
            (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")

    def gate(self, name: str, *, distribution: str, version: str = "1.0", source: str = GOOD_GATE) -> str:
        """A distribution with one gate; returns the name of its module."""
        module = f"{distribution.replace('-', '_')}_{name}"
        self.module(module, source.replace("NAME", name))
        self.distribution(distribution, {"gate": {name: module}}, version=version)
        return module

    def registry(self, **how: Any) -> Registry:
        """How: the registry's `access` and `trace`."""
        return Registry(distributions=importlib.metadata.distributions(path=[str(self.folder)]), **how)


@contextlib.contextmanager
def empty_site() -> Iterator[FakeSite]:
    """A site on `sys.path`; modules imported from it are forgotten afterwards."""
    before = set(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        try:
            yield FakeSite(Path(folder))
        finally:
            sys.path.remove(folder)
            for name in set(sys.modules) - before:
                if (sys.modules[name].__dict__.get("__file__") or "").startswith(folder):
                    del sys.modules[name]
