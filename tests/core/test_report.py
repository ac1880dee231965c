"""A report knows its JSON, its tables, its page and its files; nothing of it is lost on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import pytest

from dba_core.errors import UsageError
from dba_core.report import Column, GoalError, Picture, Report, SilentReporter, Table, as_plain


def report(**other: object) -> Report:
    rows = ({"name": "a|b", "ms": 1.25}, {"name": "c", "ms": None})
    made = Report(
        name="speed",
        title="How fast *it* is",
        command="dba bench speed --repeats 5",
        tables=(Table(columns=(Column("name", "what"), Column("ms", "ms", "{:.1f}")), rows=rows),),
        figures={"rows": rows, "lost": math.nan},
        notes=("one round",),
    )
    return attrs.evolve(made, **other)


def test_json_is_finite_and_whole() -> None:
    document = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert document == {
        "schema": 1,
        "name": "speed",
        "title": "How fast *it* is",
        "command": "dba bench speed --repeats 5",
        "notes": ["one round"],
        "rows": [{"name": "a|b", "ms": 1.25}, {"name": "c", "ms": None}],
        "lost": None,
    }


def test_a_page_shows_texts_as_they_are() -> None:
    page = report(tables=(*report().tables, Table.of_facts([("Where", "here")], title="Facts"))).markdown()
    assert page.splitlines()[:3] == ["# How fast \\*it\\* is", "", "```sh"]
    assert "| a\\|b | 1.2 |" in page
    assert "| c |  |" in page
    assert "## Facts" in page
    assert "| Where | here |" in page
    assert "- one round" in page


def test_files_are_written_and_a_picture_stands_on_the_page(tmp_path: Path) -> None:
    drawn = report(pictures=(Picture(name="speed", draw=lambda path: path.write_bytes(b"PNG") and None),))
    folder = tmp_path / "new" / "folder"
    assert [path.name for path in drawn.save(folder, plot=True)] == ["speed.png", "speed.json", "speed.md"]
    assert json.loads((folder / "speed.json").read_text(encoding="utf-8")) == drawn.to_dict()
    assert "(speed.png)" in (folder / "speed.md").read_text(encoding="utf-8")
    assert [path.name for path in report().save(folder)] == ["speed.json", "speed.md"]
    assert "speed.png" not in (folder / "speed.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="no picture"):
        report().draw(folder)
    with pytest.raises(UsageError, match="is a file"):
        report().save(folder / "speed.md")


def test_a_goal_that_is_missed_is_an_error_only_where_it_is_required() -> None:
    assert report().require() == report()
    with pytest.raises(GoalError, match="too slow") as caught:
        report(failed="it is too slow").require()
    assert caught.value.exit_code == 1


def test_attrs_objects_become_plain() -> None:
    assert as_plain((Column("a", "A"), {1: math.inf})) == [
        {"key": "a", "title": "A", "form": "{}"},
        {"1": None},
    ]


def test_nobody_need_listen() -> None:
    silent = SilentReporter()
    silent.phase("x", 3)
    silent.step()
    silent.note("x")
    silent.warning("x")
    silent.event(object())
