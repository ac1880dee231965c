"""The contract of checkpoint sources: a path is recognized or declined, and what is opened is a whole model.

The files are the plugin's own: its `example(folder)` writes a tiny checkpoint there and returns the path that
a user would give.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from dba_core.contracts import CheckpointSourcePlugin, SourceRequest
from dba_core.errors import CheckpointError, SourceError
from dba_core.model.pretrained import PretrainedModel, open_with
from dba_core.registry.contain import Failure, contain, shown
from dba_core.registry.selection import Selection
from dba_core.testing.check import Suite
from dba_core.testing.every_kind import incomplete_reasons
from dba_core.testing.subject import BreachError, Subject, Violation, told

CHECKPOINT_SOURCE = Suite("checkpoint_source")


def example(subject: Subject) -> Iterator[Path]:
    """The path of a fresh example. Raises BreachError for a plugin that writes none."""
    plugin = cast("CheckpointSourcePlugin", subject.loaded.plugin)
    with tempfile.TemporaryDirectory() as scratch:
        path: object = contain(lambda: plugin.example(Path(scratch)))
        if not isinstance(path, Path) or not path.exists():
            expected = "it writes a tiny checkpoint into the folder and returns its path"
            hint = "A model of two layers with random weights will do; this suite reads nothing else."
            raise BreachError("example(folder)", expected, told(path), hint)
        yield path


def opened(subject: Subject, path: Path) -> PretrainedModel:
    """Raises BreachError where the plugin declines the path; whatever opening it raises is let through."""
    request = SourceRequest.of(path)
    answer = subject.answer(request)
    if not answer.ok:
        got = "; ".join(map(str, answer.reasons))
        hint = "Look at the name, at `entries` and at `head` of the request; read little."
        raise BreachError(path.name, "supports() recognizes the plugin's own example", got, hint)
    subject.tally.cases += 1
    return open_with(
        Selection(
            info=subject.loaded.info,
            plugin=subject.loaded.plugin,
            options=subject.options,
            request=request,
            how="named",
            why="under test",
        )
    )


@CHECKPOINT_SOURCE.check(
    "it recognizes its own example, and declines what is none with complete reasons", over=example
)
def recognizes(subject: Subject, path: Path) -> Iterator[Violation]:
    opened(subject, path)
    with tempfile.TemporaryDirectory() as scratch:
        for each in _others(Path(scratch)):
            answer = subject.answer(SourceRequest.of(each))
            if answer.ok:
                hint = "Another source is not asked about a path that this one takes."
                yield Violation(each.name, "a reason against it", "supports() takes it", hint)
            yield from incomplete_reasons(answer.reasons, case=each.name)


def _others(folder: Path) -> list[Path]:
    """What no source reads."""
    for name, content in {
        "empty": b"",
        "notes.txt": b"Weights are elsewhere.\n",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "folder of notes/README.md": b"# Notes\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "empty folder").mkdir()
    return sorted(folder.iterdir())


@CHECKPOINT_SOURCE.check(
    "the description is of a model, its weights have the shapes of it, texts are plain data", over=example
)
def describes_a_model(subject: Subject, path: Path) -> Iterator[Violation]:
    model = opened(subject, path)  # which compares configuration, names and shapes
    said = model.opened
    for name, value in [
        ("name", said.name),
        ("family", said.family),
        *(("files", f) for f in said.files),
    ]:
        if not isinstance(value, str) or not value.strip():
            yield Violation(name, "a text", shown(value), "Reports show it.")
    if not said.files:
        yield Violation("files", "the files that were read", "none", "Name them.")
    document = contain(lambda: json.dumps(dict(said.tokenizer_config), allow_nan=False))
    if isinstance(document, Failure):
        hint = "Give texts, numbers, true and false, lists and tables of them."
        expected = "a table as in a tokenizer_config.json"
        yield Violation("tokenizer_config", expected, str(document), hint)
    text = said.tokenizer_json
    if text is not None and not isinstance(contain(lambda: json.loads(text)), dict):
        hint = "Give None where there is no tokenizer that can be read."
        yield Violation("tokenizer_json", "the text of a tokenizer.json, or None", shown(text), hint)
    table = model.frequencies
    shape = (said.description.n_kv_heads, said.description.geo_head_dim // 2)
    if table is not None and (tuple(table.shape) != shape or table.dtype != torch.float64):
        hint = "One row of Dg/2 pairs for each KV head."
        yield Violation("frequencies", f"float64 {shape}", f"{table.dtype} {tuple(table.shape)}", hint)


@CHECKPOINT_SOURCE.check(
    "every weight is there, float32 on the CPU, of its shape, finite, and the same twice", over=example
)
def weights_on_demand(subject: Subject, path: Path) -> Iterator[Violation]:
    model, again = opened(subject, path), opened(subject, path)
    for name in model.opened.weights:
        first = model.load(name)
        if first.dtype != torch.float32 or first.device.type != "cpu":
            got = f"{first.dtype} on {first.device}"
            yield Violation(name, "float32 on the CPU", got, "read() converts what is stored.")
        for what, other in (("read twice", model.load(name)), ("opened twice", again.load(name))):
            if not torch.equal(first, other):
                hint = "read() reads the file; it keeps no place in it and draws nothing."
                yield Violation(f"{name}, {what}", "the same numbers", "others", hint)


@CHECKPOINT_SOURCE.check(
    "the model that is built computes: finite logits of the vocabulary's width",
    hint="Look at the description first: widths, norm, theta.",
    over=example,
)
def builds_a_model(subject: Subject, path: Path) -> Iterator[Violation]:
    with torch.no_grad():
        model = opened(subject, path)
        logits = model.build()(torch.zeros(1, 3, dtype=torch.int64))
        wanted = (1, 3, model.opened.description.vocab_size)
        if logits.shape != wanted or not logits.isfinite().all():
            got = f"{tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of them not finite"
            yield Violation("three tokens", f"finite logits {list(wanted)}", got)


@CHECKPOINT_SOURCE.check(
    "a file that is missing, empty or cut off is an error that names it, and nothing else", over=example
)
def damage_is_said(subject: Subject, path: Path) -> Iterator[Violation]:
    files = [each for each in sorted(path.rglob("*")) if each.is_file()] if path.is_dir() else [path]
    largest = max(files, key=lambda file: file.stat().st_size)
    for file in files:
        content = file.read_bytes()
        half = content[: len(content) // 2]
        for damage, left in (("cut off", half), ("empty", b""), ("missing", None)):
            if left is None:
                file.unlink()
            else:
                file.write_bytes(left)
            yield from _ends_well(subject, path, case=f"{file.name} {damage}", needed=file == largest)
        file.write_bytes(content)


def _ends_well(subject: Subject, path: Path, *, case: str, needed: bool) -> Iterator[Violation]:
    """Opens and reads everything. needed: without the file there is no model."""

    def read_all() -> None:
        if not subject.answer(SourceRequest.of(path)).ok:
            raise SourceError(f"{path} is declined")
        _read_all(subject, path)

    ended = contain(read_all)
    if not isinstance(ended, Failure):
        if needed:
            yield Violation(case, "an error", "a model", "Compare sizes before anything is believed.")
    elif not isinstance(ended.error, (CheckpointError, SourceError)) or str(path) not in str(ended.error):
        hint = "Raise CheckpointError with the path for what is damaged, SourceError for what is not read."
        yield Violation(case, "a CheckpointError that names the file", str(ended), hint)


def _read_all(subject: Subject, path: Path) -> None:
    model = opened(subject, path)
    for name in model.opened.weights:
        model.load(name)


@CHECKPOINT_SOURCE.check(
    "opening and reading writes nothing beside the model",
    hint="Models are often on a disk that may not be written.",
    over=example,
)
def writes_nothing(subject: Subject, path: Path) -> Iterator[Violation]:
    before = _content(path.parent)
    _read_all(subject, path)
    changed = sorted(str(each) for each, _ in before ^ _content(path.parent))
    if changed:
        expected = "every file as before, and no other"
        yield Violation(path.name, expected, f"changed: {', '.join(changed[:3])}")


def _content(folder: Path) -> set[tuple[Path, str]]:
    """Every file under the folder, with what it holds."""
    return {
        (each.relative_to(folder), hashlib.sha256(each.read_bytes()).hexdigest())
        for each in folder.rglob("*")
        if each.is_file()
    }
