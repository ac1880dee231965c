"""A command from outside, as `dba plugins new command` writes it; a broken one beside it is contained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from third_party_site import ThirdPartySite

from dba_cli.scaffold.package import PluginPackage, write_package

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_a_command_from_outside_runs_and_a_broken_one_is_contained(tmp_path: Path) -> None:
    site = ThirdPartySite.make(tmp_path)
    folders = []
    for name in ("my-words", "no-words"):
        package = PluginPackage(kind="command", name=name)
        write_package(package, tmp_path / package.distribution)
        folders.append(tmp_path / package.distribution)
    (folders[1] / "dba_no_words.py").write_text(
        '"""Words that are never counted."""\n\nimport a_module_that_nobody_has\n', encoding="utf-8"
    )
    site.install(*folders)

    help_ = site.dba("--help")
    assert help_.code == 0, help_.err
    assert "How often each word of a text comes. [dba-my-words]" in help_.out
    assert "Words that are never counted. [dba-no-words]" in help_.out
    done, check, broken, doctor, again = site.lines(
        ("my-words", "--text", "one two two", "--json", "--save", "there"),
        ("plugins", "check", "my-words", "--kind", "command"),
        ("no-words",),
        ("plugins", "doctor"),
        ("my-words",),
    )
    assert done.code == 0, done.err
    assert done.json["rows"] == [{"word": "two", "count": 2}, {"word": "one", "count": 1}]
    assert done.json["command"] == "dba my-words --text 'one two two'"
    assert json.loads((tmp_path / "there" / "my-words.json").read_text(encoding="utf-8")) == done.json
    assert "| two | 2 |" in (tmp_path / "there" / "my-words.md").read_text(encoding="utf-8")
    assert check.code == 0, check.err
    assert broken.code == 4
    assert "a_module_that_nobody_has" in broken.err
    assert doctor.code == 4
    assert "no-words" in doctor.out + doctor.err
    assert again.code == 0
