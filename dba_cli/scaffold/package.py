"""What `dba plugins new` writes: an installable distribution of one plugin module, a test and a README.

Everything is rendered from the templates beside this file and written to a new folder, whole or not at all.
Called by `dba_cli.commands.plugins.new`.
"""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

import attrs

from dba_core.contracts import ENTRY_POINT_GROUPS, Kind
from dba_core.distribution import NAME, canonical, installed_version
from dba_core.errors import UsageError

#: The import packages of this library; a plugin's module may not hide one.
_OUR_PACKAGES = ("dba_core", "dba_plugins", "dba_cli")
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@attrs.frozen(kw_only=True)
class Example:
    """What the template of one kind is about. option: one to show in the README."""

    words: str
    work: str
    contract_class: str
    summary: str
    option: str


_EXAMPLES: dict[Kind, Example] = {
    "summarizer": Example(
        words="memory summarizer",
        work="Summarizer",
        contract_class="SummarizerContract",
        summary="a mean of each block, weighted by a learned slope over the position",
        option="shared=true",
    ),
    "gate": Example(
        words="gate",
        work="Gate",
        contract_class="GateContract",
        summary="semantic/geometric balance from the size of the hidden state",
        option="eps=1e-5",
    ),
    "null_token": Example(
        words="null token",
        work="NullToken",
        contract_class="NullTokenContract",
        summary="a key and a value of zero that every query sees",
        option="value=0.1",
    ),
    "decode_backend": Example(
        words="decode backend",
        work="Decode",
        contract_class="DecodeBackendContract",
        summary="dequantizes a sequence whole, then one softmax",
        option="max_capacity=4096",
    ),
}


@attrs.frozen(kw_only=True)
class PluginPackage:
    """The names of a new plugin, all made from its kind and its name ("my-pooling")."""

    kind: Kind
    name: str

    def __attrs_post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == "auto" or keyword.iskeyword(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a new plugin; allowed: lower-case letters, digits, and '-' or "
                "'_' between them, beginning with a letter, and neither 'auto' nor a Python keyword. "
                "Choose one like my-pooling"
            )
        if canonical(self.distribution) == NAME or self.module in _OUR_PACKAGES:
            raise UsageError(
                f"{self.name!r} would make the package {self.distribution} with the module {self.module}, "
                "one of which is DBA's own; choose another name"
            )

    @property
    def distribution(self) -> str:
        return f"dba-{self.name.replace('_', '-')}"

    @property
    def module(self) -> str:
        return f"dba_{self.name.replace('-', '_')}"

    @property
    def class_name(self) -> str:
        return "".join(part.capitalize() for part in re.split("[-_]", self.name))

    def files(self) -> dict[str, str]:
        """Every file's path in the package and its text."""
        return {
            "pyproject.toml": self._render("pyproject.toml"),
            "README.md": self._render("README.md"),
            f"{self.module}.py": self._render(f"{self.kind}.py"),
            f"tests/test_{self.module}.py": self._render("test.py"),
        }

    def _render(self, template: str) -> str:
        text = (resources.files("dba_cli.scaffold") / "templates" / f"{template}.in").read_text(
            encoding="utf-8"
        )
        return Template(text).substitute(self._values())

    def _values(self) -> Mapping[str, str]:
        example = _EXAMPLES[self.kind]
        return {
            "kind": self.kind,
            "kind_words": example.words,
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "class_name": self.class_name,
            "work_class": f"{self.class_name}{example.work}",
            "contract_class": example.contract_class,
            "summary": example.summary,
            "option_example": example.option,
            "group": ENTRY_POINT_GROUPS[self.kind],
            "requirement": f"{NAME}>={installed_version()}",
        }


def write_package(package: PluginPackage, folder: Path) -> list[Path]:
    """Write the package to `folder`, which must not exist yet, and return its files.

    They are written beside it first, so that an error leaves nothing behind. Raises UsageError for a folder
    that exists and for one whose parent does not.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already, and is left as it is; name another place with --out")
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is no folder; make it first, or name another place with --out")
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, text in package.files().items():
            path = scratch / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [folder / name for name in package.files()]
