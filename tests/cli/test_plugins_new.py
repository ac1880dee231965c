"""`dba plugins new`: what it writes, and what it refuses. That the packages work: tests/ecosystem."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dba_cli.main import main
from dba_cli.scaffold.package import PluginPackage
from dba_core.contracts import Kind
from dba_core.errors import UsageError
from dba_core.kinds import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_of_each_kind_is_whole(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", kind, "my-own_one"]) == 0
    folder = tmp_path / "dba-my-own-one"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"pyproject.toml", "README.md", "dba_my_own_one.py", "tests/test_dba_my_own_one.py"}
    listed = capsys.readouterr().out.splitlines()
    assert {str((tmp_path / line).relative_to(folder)) for line in listed} == files

    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "dba-my-own-one"
    assert project["project"]["entry-points"] == {KINDS[kind].group: {"my-own_one": "dba_my_own_one"}}
    assert project["tool"]["setuptools"]["py-modules"] == ["dba_my_own_one"]

    tree = ast.parse((folder / "dba_my_own_one.py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert ("MyOwnOneRequest" if kind == "command" else "MyOwnOnePlugin") in classes
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert ("MyOwnOneOptions" in classes) == ("the fields of `MyOwnOneOptions`" in readme)
    assert ("MyOwnOneOptions" in classes) == KINDS[kind].per_layer
    assert not [
        path for path in folder.rglob("*") if path.is_file() and "$" in path.read_text(encoding="utf-8")
    ]
    assert (folder.stat().st_mode & 0o777) == 0o755


def test_out_names_the_folder_and_an_existing_one_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious", encoding="utf-8")
    assert main(["plugins", "new", "gate", "mine", "--out", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder} exists already, and is left as it is; name another place with --out\n"
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert main(["plugins", "new", "gate", "mine", "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "dba_mine.py").exists()


def test_a_parent_that_is_missing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "gate", "mine", "--out", str(tmp_path / "a" / "b")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'a'} is no folder; make it first, or name another place with --out\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "summarizer", "mean"]) == 2
    assert "there is a summarizer 'mean' already, in dba-attention " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["plugins", "new", "gate", "mean"]) == 0  # another kind's name is free


@pytest.mark.parametrize(
    "name", ["", "My-Gate", "2nd", "a--b", "-a", "a-", "a.b", "a b", "auto", "class", "ä"]
)
def test_names_that_cannot_be_used(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a new plugin; allowed: lower-case letters"):
        PluginPackage(kind="gate", name=name)


def test_an_error_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dba_cli.scaffold.package import write_package

    def fail(*_: object, **__: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_package(PluginPackage(kind="gate", name="mine"), tmp_path / "mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_asks_for_this_library_by_its_distribution(kind: Kind) -> None:
    files = PluginPackage(kind=kind, name="mine").files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["dependencies"] == [f"dba-attention>={version('dba-attention')}"]


@pytest.mark.parametrize("name", ["attention", "core", "cli", "plugins"])
def test_a_plugin_may_not_hide_a_package_of_ours(name: str) -> None:
    with pytest.raises(UsageError, match="DBA's own"):
        PluginPackage(kind="gate", name=name)
