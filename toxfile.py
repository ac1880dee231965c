"""Offers tox the Pythons that pyenv has installed, so that a plain `tox` finds them. Called by tox.

tox looks for `python3.12` on PATH; pyenv puts a shim there that fails unless that version is switched on. The
list made here is what `tox --discover` takes by hand. Without pyenv it is empty.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tox.config.sets import ConfigSet
from tox.plugin import impl
from tox.session.state import State

MIN_VERSION = (3, 10)


@impl
def tox_add_core_config(core_conf: ConfigSet, state: State) -> None:
    """Add pyenv's interpreters after those that the user named with --discover or TOX_DISCOVER."""
    state.conf.options.discover = [*state.conf.options.discover, *pyenv_interpreters()]


def pyenv_interpreters() -> list[str]:
    """CPython executables under pyenv's root, newest first, without the minor version that runs tox."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found: dict[tuple[int, ...], str] = {}
    for folder in (root / "versions").glob("3.*"):
        executable = folder / ("python.exe" if os.name == "nt" else "bin/python")
        if re.fullmatch(r"3\.\d+\.\d+", folder.name) and executable.exists():
            version = tuple(int(part) for part in folder.name.split("."))
            if version[:2] >= MIN_VERSION and version[:2] != sys.version_info[:2]:
                found[version] = str(executable)
    return [found[version] for version in sorted(found, reverse=True)]
