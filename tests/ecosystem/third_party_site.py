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
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen
class Finished:
    """What a process left."""

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
        """Build each folder's wheel as any installer would, and install them without their dependencies."""
        wheels = self.root / "wheels"
        _pip("wheel", "--no-deps", "--wheel-dir", wheels, *folders)
        built = [next(wheels.glob(f"{folder.name.replace('-', '_')}-*.whl")) for folder in folders]
        _pip("--python", self.python, "install", "--no-deps", "--no-index", *built)

    def dba(self, *args: object) -> Finished:
        return self.run("-m", "dba_cli", *args)

    def run(self, *args: object) -> Finished:
        """This environment's Python, started in the root."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")
        }
        done = subprocess.run(
            [str(self.python), *map(str, args)],
            cwd=self.root,
            env={**environment, "MPLBACKEND": "agg", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def _pip(*args: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
