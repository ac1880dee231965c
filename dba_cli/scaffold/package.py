"""What `dba plugins new` writes: an installable distribution of one plugin module, a test and a README.

Everything is rendered from the templates beside this file and written to a new folder, whole or not at all.
"""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from string import Template

import attrs

from dba_core.contracts import Kind
from dba_core.distribution import NAME, installed_version, is_ours
from dba_core.errors import UsageError
from dba_core.kinds import KINDS

#: The import packages of this library; a plugin's module may not hide one.
_OUR_PACKAGES = ("dba_core", "dba_plugins", "dba_cli")
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


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
        if is_ours(self.distribution) or self.module in _OUR_PACKAGES:
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
        facts, source = _template(KINDS[self.kind].template)
        values = {**self._values(), **facts}
        options = "${class_name}Options" in source
        values.setdefault("promises", _promises(self, facts.get("option"), options=options))
        texts = {
            "pyproject.toml": _text("pyproject.toml.in"),
            "README.md": _text("README.md.in"),
            f"{self.module}.py": source,
            f"tests/test_{self.module}.py": _text("test.py.in"),
        }
        return {path: Template(text).substitute(values) for path, text in texts.items()}

    def _values(self) -> dict[str, str]:
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "class_name": self.class_name,
            "contract_class": f"{''.join(part.capitalize() for part in self.kind.split('_'))}Contract",
            "group": kind.group,
            "example": kind.example(self.name),
            "requirement": f"{NAME}>={installed_version()}",
        }


def _template(name: str) -> tuple[dict[str, str], str]:
    """What stands above the line of dashes, as `key: value`, and what stands below it."""
    head, _, text = _text(name).partition("---\n")
    return dict(line.split(": ", 1) for line in head.splitlines()), text


def _text(name: str) -> str:
    return (resources.files("dba_cli.scaffold") / "templates" / name).read_text(encoding="utf-8")


_SUPPORTS = (
    "- `supports()` says beforehand what the plugin cannot do, with the reason and what would do "
    "instead. It never raises to say no.\n"
)


def _promises(package: PluginPackage, option: str | None, *, options: bool) -> str:
    """The README's lines about what a plugin that is built does. option: one to show."""
    if not options:
        return f"{_SUPPORTS}- `build()` returns the finished object. It takes no options."
    given = f"{KINDS[package.kind].example(package.name)}:{option}"
    hint = "" if option is None else f";\n  `{given}` sets one"
    return (
        f"{_SUPPORTS}- `build()` returns the finished object. Options are the fields of "
        f"`{package.class_name}Options`{hint}."
    )


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
