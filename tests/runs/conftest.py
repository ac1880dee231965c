"""One finished run for the tests that only read it."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import attrs
import pytest
from runs_tiny import Done, dba, only_run, write_inputs

from dba_core.runs.folder import RunFolder


@attrs.frozen
class TinyRun:
    """A finished run, the arguments that made it, and what the command printed."""

    folder: RunFolder
    args: list[str]
    done: Done


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    place = tmp_path_factory.mktemp("tiny")
    args = write_inputs(place)
    done = dba("run", *args, "--out", str(place / "runs"), "--json")
    assert done.code == 0, done.err
    return TinyRun(only_run(place / "runs"), args, done)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """The arguments of a run whose files lie in this test's folder."""
    return write_inputs(tmp_path)


#: One grey point.
POINT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, half of a tiny run's time, are single points. Those of the runs that several tests share are
    drawn: of `tiny`, whose pictures are looked at, and of the one with hostile names.
    """

    def point(figure: object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(POINT)

    if request.node.get_closest_marker("torch") is not None:
        monkeypatch.setattr("dba_core.runs.plots.save_png", point)


@pytest.fixture(autouse=True)
def _own_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
