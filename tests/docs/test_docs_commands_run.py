"""The `dba` lines of README and docs are executed in a folder that holds what they name.

`dba run` is done dry, since a training of minutes shows nothing more; measurements and conversions have tests
of their own; the pages of the benchmarks say what took minutes or hours.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from dba_cli.main import main

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "benchmarks" not in page.parts),
]
#: What cannot be done here: it needs a model, a token array, or an interrupted run.
ELSEWHERE = re.compile(r"^dba (bench|convert)\b|runs/smol|tokens\.bin|--resume")
#: Exit codes that say something, and are not errors: a limit that is passed, two configurations that differ.
TELLING = {"drift": (0, 1), "config": (0, 1)}
TEXTS = ("book.txt", "input.txt", "tinyshakespeare.txt", "folder/a.txt")


def commands() -> list[str]:
    """Every `dba` line of the pages once, in order."""
    found: dict[str, None] = {}
    for page in PAGES:
        if "examples" in page.parts:
            continue
        for body in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
            for line in body.replace("\\\n", " ").splitlines():
                if match := re.search(r"(?<![\w./-])dba (?!-c)", line):
                    found[line[match.start() :].partition(" #")[0].strip()] = None
    return [line for line in found if not ELSEWHERE.search(line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and runs of the names that the pages use."""
    folder = tmp_path_factory.mktemp("pages")
    for name in TEXTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("It was a bright cold day in April. " * 9000, encoding="utf-8")
    (folder / "my.toml").write_text("[model]\nd_model = 96\n", encoding="utf-8")
    small = ["--set", "training.steps=2", "--set", "evaluation.tokens=256", "--quiet"]
    small += ["--set", "evaluation.fidelity_tokens=64", "--out", str(folder / "runs")]
    swapped = [(name, ["--plugin", f"summarizer={name}"]) for name in ("conv", "mean")]
    for name, more in (*swapped, ("first", [])):
        assert main(["run", "--name", name, *more, *small]) == 0
    (first,) = (folder / "runs").glob("*-first")
    shutil.copytree(first, folder / "runs" / "20260101-120000-default")
    return folder


@pytest.mark.parametrize("line", commands())
def test_the_line_does_what_it_says(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(line)[1:]
    if words[0] == "run" and not {"--dry-run", "--print-config"} & set(words):
        words.append("--dry-run")
    code = main(words)
    assert code in TELLING.get(words[0], (0,)), capsys.readouterr().err


def test_there_are_lines() -> None:
    assert len(commands()) > 40
