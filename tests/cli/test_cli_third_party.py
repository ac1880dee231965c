"""Commands of other distributions: listed by one line, run like ours; a broken one breaks no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_site import FakeSite, empty_site

from dba_core.registry import Registry

Dba = Callable[..., Any]

COMMAND = '''"""How many letters a text has.

More about it.
"""

import attrs

from dba_core import hookimpl
from dba_core.command import Command, command_line, option, summary_of
from dba_core.report import Column, Report, Table


@attrs.frozen(kw_only=True)
class Request:
    text: str = option("abc", help="The text.")
    times: tuple[int, ...] = option((1,), help="Factors.", least=1, most=9)
    most: int | None = option(None, help="A limit.", without="none", least=0)


def run(request, reporter):
    """Count letters."""
    reporter.phase("Counting ...")
    if request.text == "boom":
        raise RuntimeError("out of letters")
    if request.text == "none":
        return None
    rows = [{"times": times, "letters": times * len(request.text)} for times in request.times]
    above = request.most is not None and rows[-1]["letters"] > request.most
    return Report(
        name="NAME", title="Letters", command=command_line("NAME", request), notes=("counted",),
        tables=(Table(columns=(Column("times", "x"), Column("letters", "letters")), rows=rows),),
        figures={"rows": rows}, failed="too many letters" if above else None,
    )


@hookimpl
def dba_command():
    return Command(name="NAME", contract=1, summary=summary_of(__doc__), request_class=Request, run=run)
'''
BROKEN = '"""A command that cannot be imported."""\n\nimport a_module_that_nobody_has\n'


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """Commands of acme, broken ones, and two of one name."""
    monkeypatch.setenv("COLUMNS", "200")
    with empty_site() as site:
        named = {
            "acme_letters": "letters",
            "acme_drift": "drift",
            "acme_in": "group.letters",
            "acme_run": "run",
            "acme_twin": "twin",
            "acme_bench": "bench.letters",
        }
        for module, name in named.items():
            site.module(module, COMMAND.replace("NAME", name))
        site.module("other_twin", COMMAND.replace("NAME", "twin"))
        site.module("broken_import", BROKEN)
        site.module("broken_syntax", "def\n")
        site.distribution("acme", {"dba.commands": {name: module for module, name in named.items()}})
        site.distribution("other", {"dba.commands": {"twin": "other_twin"}})
        broken = {"importless": "broken_import", "wordless": "broken_syntax", "gone": "module_that_is_gone"}
        site.distribution("broken", {"dba.commands": broken})
        Registry.default.cache_clear()
        yield site
    Registry.default.cache_clear()


@pytest.fixture
def outside(dba, site: FakeSite) -> Dba:
    """`dba` where it sees them."""
    return dba


def test_the_help_lists_them_and_names_what_is_broken(outside) -> None:
    done = outside("--help")
    assert done.code == 0, done.err
    own, _, others = done.out.partition("Commands of other distributions:")
    lines = {line.split()[0]: line for line in others.splitlines() if line.startswith("  ") and line.strip()}
    assert "How many letters a text has. [acme]" in lines["letters"]
    assert {"acme:drift", "acme:run", "acme:twin", "other:twin", "group"} <= set(lines)
    assert not {"drift", "run", "twin", "bench"} & set(lines)
    assert "Commands: letters. [acme]" in lines["group"]
    assert "A command that cannot be imported. [broken]" in lines["importless"]
    assert "(broken: SyntaxError" in lines["wordless"]
    assert "(broken: ModuleNotFoundError: there is no module module_that_is_gone)" in lines["gone"]
    assert "  drift " in own
    assert "letters" in outside("bench", "--help").out, "another distribution adds to a group of ours"


def test_one_runs_like_ours(outside, tmp_path: Path) -> None:
    done = outside("letters", "--text", "four", "--times", "1,2,1", "--json", "--save", "there")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["rows"] == [{"times": 1, "letters": 4}, {"times": 2, "letters": 8}]
    assert document["command"] == "dba letters --text four --times 1,2"
    assert json.loads((tmp_path / "there" / "letters.json").read_text(encoding="utf-8")) == document
    assert (tmp_path / "there" / "letters.md").read_text(encoding="utf-8").startswith("# Letters\n")
    assert "Counting ..." in done.err
    quiet = outside("group", "letters", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert "- counted" in quiet.out
    assert outside("bench", "letters", "--quiet").code == 0
    assert outside("acme:drift", "--quiet").code == 0


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["letters", "--times", "0"], 2, "'0' is no whole number from 1 to 9"),
        (["letters", "--most", "-1"], 2, "--most"),
        (["letters", "--txt", "x"], 2, "'--text'"),
        (["letters", "--plot"], 2, "No such option"),
        (["letters", "--most", "2"], 1, "error: too many letters"),
        (["letters", "--text", "boom"], 1, "of acme 1.0 failed (RuntimeError: out of letters)"),
        (["letters", "--text", "none"], 1, "returned None; allowed: a dba_core.report.Report"),
        (["importless"], 4, "a_module_that_nobody_has"),
        (["wordless"], 4, "SyntaxError"),
        (["gone"], 4, "module_that_is_gone"),
        (["twin"], 2, "acme:twin"),
        (["leters"], 2, "Did you mean 'letters'"),
    ],
)  # fmt: skip
def test_wrong_lines_and_broken_commands_end_with_their_code(
    outside, args: list[str], code: int, told: str
) -> None:
    done = outside(*args)
    assert done.code == code, done.err
    assert told in done.err
    assert "Traceback" not in done.err


def test_an_allow_list_is_about_what_others_bring(dba_process, site: FakeSite) -> None:
    """In processes of their own: the list is read once."""
    names = {"PYTHONPATH": str(site.folder), "DBA_PLUGINS_ALLOW": "causal"}
    ours = dba_process("drift", "--help", **names)
    assert ours.code == 0
    assert "long-sequence attention" in ours.out
    theirs = dba_process("letters", **names)
    assert theirs.code == 4
    assert "DBA_PLUGINS_ALLOW" in theirs.err
