"""The name under which this library is installed, and the command that adds what is missing of it.

The import packages (`dba_core`, ...) and the command (`dba`) are called otherwise: on the package index `dba`
belongs to another project. Versions before the first release were installed as `dba`, and that is what their
runs recorded: the former name stays an alias of the present one.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "dba-attention"
FORMER_NAME = "dba"


def canonical(distribution: str) -> str:
    """The name under which two spellings of a distribution are the same (PEP 503), ours under either name."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    return NAME if name == FORMER_NAME else name


def is_ours(distribution: str) -> bool:
    """Whether this library is meant."""
    return canonical(distribution) == NAME


def installed_version() -> str:
    """The version of this library, from its metadata."""
    return importlib.metadata.version(NAME)


def install_command(extra: str) -> str:
    """The command that installs an extra of this library, as this installation of it was made.

    An editable checkout is named by its folder (`.` where the command runs in it), anything else by NAME.
    """
    checkout = _editable_checkout()
    if checkout is None:
        return f"python -m pip install '{NAME}[{extra}]'"
    if checkout == Path.cwd():
        return f'python -m pip install -e ".[{extra}]"'
    return f"python -m pip install -e {shlex.quote(f'{checkout}[{extra}]')}"


def _editable_checkout() -> Path | None:
    """The folder that an editable installation points at, as pip recorded it (PEP 610)."""
    text = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    record = json.loads(text) if text else {}
    if not record.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(record["url"]).path)).resolve()
