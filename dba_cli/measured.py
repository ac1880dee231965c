"""What commands that measure a run have in common: lists to try, a bar, and the files they were asked for.

Called by `dba drift` and `dba tune`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

Callback = Callable[[click.Context, click.Parameter, "str | None"], tuple[Any, ...]]


def numbers(*, least: int) -> Callback:
    """Whole numbers with commas between them, each at least `least`; one that comes twice counts once."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, ...]:
        parts = [] if text is None else [part.strip() for part in text.split(",")]
        for part in parts:
            if not part.isdecimal() or int(part) < least:
                raise click.BadParameter(f"{part!r} is no whole number >= {least}; write 64 or 32,64,128.")
        return tuple(dict.fromkeys(map(int, parts)))

    return read


@contextlib.contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, on a terminal only; it is told (done, total)."""
    from dba_cli.rendering import progress

    with progress("{task.description}", "{task.percentage:>3.0f}%") as drawn:
        task = drawn.add_task(text, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


def write_measured(
    name: str,
    document: Mapping[str, Any],
    *,
    run: Path,
    out: Path | None,
    draw: Callable[[Path], None] | None,
) -> list[Path]:
    """NAME.json in `out`, or in the run's folder under NAME, and NAME.png beside it where there is `draw`.

    They replace those of an earlier measurement. Nothing is written where neither was asked for.
    """
    if out is None and draw is None:
        return []
    from dba_core.documents import write_json

    folder = run / name if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json"]
    write_json(files[0], document)
    if draw is not None:
        files.append(folder / f"{name}.png")
        draw(files[1])
    return files
