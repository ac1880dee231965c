"""A clean environment beside the one that runs the tests, in whose own site-packages plugins are installed.

The library and what it needs are those of the running environment, seen through a .pth file; what is
installed here is seen nowhere else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

#: What builds every package here; fetched once.
_BUILD_TOOLS = "setuptools>=77"
#: Runs the command lines that stdin lists, one after the other; tells on stdout what each left.
_LINES = """
import contextlib, io, json, sys
from dba_cli.main import main

done = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    done.append([code, out.getvalue(), err.getvalue()])
json.dump(done, sys.stdout)
"""


@attrs.frozen
class Finished:
    """What a command line left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which is one JSON document."""
        return json.loads(self.out)


@attrs.frozen
class ThirdPartySite:
    """A virtual environment in `root`."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> ThirdPartySite:
        """Without pip: packages come from the outer one."""
        venv.create(root / "venv", with_pip=False)
        site = cls(root)
        (site.packages / "outer.pth").write_text(
            "".join(
                f"import site; site.addsitedir({path!r})\n"
                for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
            ),
            encoding="utf-8",
        )
        return site

    @property
    def python(self) -> Path:
        return self.root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        (found,) = (self.root / "venv").rglob("site-packages")
        return found

    def install(self, *folders: Path) -> None:
        """Build each folder's wheel, with one setuptools for all; install them without what they need."""
        # beside all sites of a session
        wheels, tools = self.root / "wheels", self.root.parent / "build-tools"
        if not tools.exists():
            _pip("install", "--target", tools, _BUILD_TOOLS)
        environment = {**os.environ, "PYTHONPATH": str(tools)}
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, *folders, env=environment)
        built = [next(wheels.glob(f"{folder.name.replace('-', '_')}-*.whl")) for folder in folders]
        _pip("--python", self.python, "install", "--no-deps", "--no-index", *built)

    def dba(self, *args: object) -> Finished:
        """One command line in a process of its own."""
        return self.run("-m", "dba_cli", *args)

    def lines(self, *lines: Sequence[object]) -> list[Finished]:
        """What each of these lines leaves, all of them in one process, where torch is loaded once."""
        told = self.run("-c", _LINES, given=json.dumps([list(map(str, line)) for line in lines]))
        assert told.code == 0, told.err
        return [Finished(*each) for each in told.json]

    def run(self, *args: object, given: str = "") -> Finished:
        """This environment's Python, started in the root. given: its standard input."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")
        }
        done = subprocess.run(
            [str(self.python), *map(str, args)],
            cwd=self.root,
            env={**environment, "MPLBACKEND": "agg", "COLUMNS": "200"},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def _pip(*args: object, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
