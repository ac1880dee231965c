"""README and docs say what is so: Python blocks run, commands and options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from source_tree import PYPROJECT, ROOT

import dba_core
from dba_cli.main import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def dba_commands(page: Path) -> list[str]:
    """Every line in a shell block that calls `dba`, what stands before it on the line left out."""
    lines = [line for body in blocks(page, "sh") for line in body.replace("\\\n", " ").splitlines()]
    return [line[match.start() :] for line in lines if (match := re.search(r"(?<![\w./-])dba (?!-c)", line))]


def pages_with_python() -> list[Any]:
    """A benchmark takes as long as it takes: its page runs with the slow tests."""
    pages = [page for page in PAGES if blocks(page, "python")]
    slow = {page: [pytest.mark.slow] if "benchmarks" in page.parts else [] for page in pages}
    return [pytest.param(page, id=name_of(page), marks=slow[page]) for page in pages]


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that trains models for its figures does so for two steps here: its code is what is tested."""
    from dba_plugins.bench import recall

    learn = recall.learn_recall

    def shortly(task: Any, *, training: Any = recall.TRAINING, **others: Any) -> Any:
        return learn(task, training=attrs.evolve(training, steps=2, warmup_steps=1), **others)

    monkeypatch.setattr(recall, "learn_recall", shortly)


@pytest.mark.torch
@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("page", pages_with_python())
def test_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for number, body in enumerate(blocks(page, "python")):
        exec(compile(body, f"{name_of(page)}[{number}]", "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=f"{name_of(page)}-{line}") for page in PAGES for line in dba_commands(page)],
)
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line.partition(" #")[0])[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="dba")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: no command {words[0]!r}"
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    known = {
        opt for parameter in command.get_params(context) for opt in parameter.opts + parameter.secondary_opts
    }
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= known, f"{line}: {command.name} has no {sorted(used - known)}"


def test_the_commands_of_the_readme_are_all_found() -> None:
    assert len(dba_commands(ROOT / "README.md")) >= 9


def test_readme_starts_with_the_two_commands() -> None:
    assert blocks(ROOT / "README.md", "sh")[:2] == [
        "python -m pip install -e . -c constraints.txt && dba run\n",
        "python -m pip install tox && tox\n",
    ]
    assert "dba" in PYPROJECT["project"]["scripts"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_to_files(name: str) -> None:
    """mkdocs checks the links inside docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert all((ROOT / target).exists() for target in targets)


def test_every_public_name_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    missing = {
        name for name in dba_core.__all__ if not name.startswith("_") and not re.search(rf"\b{name}\b", page)
    }
    assert not missing


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page for page in PAGES[1:] if "examples" not in page.parts]  # packages, not pages
    missing = [name_of(page) for page in pages if str(page.relative_to(ROOT / "docs")) not in navigation]
    assert not missing


def test_no_page_has_a_placeholder() -> None:
    words = re.compile(r"\b(TBD|coming soon|lorem ipsum|integrator)\b", re.IGNORECASE)
    found = [name_of(page) for page in PAGES if words.search(page.read_text(encoding="utf-8"))]
    assert not found
