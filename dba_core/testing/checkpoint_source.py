"""The contract of checkpoint sources: a path is recognized or declined, and what is opened is a whole model.

The files are the plugin's own: its `example(folder)` writes a tiny checkpoint there and returns the path that
a user would give.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from dba_core.contracts import CheckpointSourcePlugin, OpenedSource, SourceRequest
from dba_core.errors import CheckpointError, SourceError
from dba_core.model.pretrained import PretrainedModel, open_with
from dba_core.registry.contain import Failure, contain, shown
from dba_core.registry.selection import Selection
from dba_core.testing.check import Suite
from dba_core.testing.every_kind import incomplete_reasons
from dba_core.testing.subject import BreachError, Subject, Violation

CHECKPOINT_SOURCE = Suite("checkpoint_source")


@contextlib.contextmanager
def example(subject: Subject) -> Iterator[Path]:
    """The path of a fresh example. Raises BreachError for a plugin that writes none."""
    plugin = subject.loaded.plugin
    with tempfile.TemporaryDirectory() as scratch:
        path = None
        if isinstance(plugin, CheckpointSourcePlugin):
            path = contain(lambda: plugin.example(Path(scratch)))
        if isinstance(path, Failure) or not isinstance(path, Path) or not path.exists():
            raise BreachError(
                Violation(
                    case="example(folder)",
                    expected="it writes a tiny checkpoint into the folder and returns its path",
                    got=f"it raised {path}" if isinstance(path, Failure) else f"{shown(path)}",
                    hint="A model of two layers with random weights will do; this suite reads nothing else.",
                )
            )
        yield path


def opened(subject: Subject, path: Path) -> PretrainedModel:
    """Raises BreachError where the plugin declines the path; whatever opening it raises is let through."""
    request = SourceRequest.of(path)
    answer = subject.answer(request)
    if not answer.ok:
        raise BreachError(
            Violation(
                case=str(path.name),
                expected="supports() recognizes the plugin's own example",
                got="; ".join(map(str, answer.reasons)),
                hint="Look at the name, at `entries` and at `head` of the request; read little.",
            )
        )
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


@CHECKPOINT_SOURCE.check("it recognizes its own example, and declines what is none with complete reasons")
def recognizes(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path:
        opened(subject, path)
    with tempfile.TemporaryDirectory() as scratch:
        for each in _others(Path(scratch)):
            answer = subject.answer(SourceRequest.of(each))
            if answer.ok:
                yield Violation(
                    case=each.name,
                    expected="a reason against it",
                    got="supports() takes it",
                    hint="Another source is not asked about a path that this one takes.",
                )
            yield from incomplete_reasons(answer.reasons, case=each.name)


def _others(folder: Path) -> Iterator[Path]:
    """What no source reads."""
    for name, content in {
        "empty": b"",
        "notes.txt": b"Weights are elsewhere.\n",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    }.items():
        (folder / name).write_bytes(content)
        yield folder / name
    for name in ("empty folder", "folder of notes"):
        (folder / name).mkdir()
    (folder / "folder of notes" / "README.md").write_text("# Notes\n", encoding="utf-8")
    yield from (folder / "empty folder", folder / "folder of notes")


@CHECKPOINT_SOURCE.check(
    "the description is of a model, its weights have the shapes of it, texts are plain data"
)
def describes_a_model(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path:
        model = opened(subject, path)  # which compares configuration, names and shapes
        said = model.opened
        for name, value in (
            ("name", said.name),
            ("family", said.family),
            *(("files", f) for f in said.files),
        ):
            if not isinstance(value, str) or not value.strip():
                yield Violation(case=name, expected="a text", got=shown(value), hint="Reports show it.")
        if not said.files:
            yield Violation(case="files", expected="the files that were read", got="none", hint="Name them.")
        yield from _plain_texts(said)
        table = model.frequencies
        shape = (said.description.n_kv_heads, said.description.geo_head_dim // 2)
        if table is not None and (tuple(table.shape) != shape or table.dtype != torch.float64):
            yield Violation(
                case="frequencies",
                expected=f"float64 {shape}",
                got=f"{table.dtype} {tuple(table.shape)}",
                hint="One row of Dg/2 pairs for each KV head.",
            )


def _plain_texts(said: OpenedSource) -> Iterator[Violation]:
    document = contain(lambda: json.dumps(dict(said.tokenizer_config), allow_nan=False))
    if isinstance(document, Failure):
        yield Violation(
            case="tokenizer_config",
            expected="a table as in a tokenizer_config.json",
            got=str(document),
            hint="Give texts, numbers, true and false, lists and tables of them.",
        )
    text = said.tokenizer_json
    if text is not None and not isinstance(contain(lambda: json.loads(text)), dict):
        yield Violation(
            case="tokenizer_json",
            expected="the text of a tokenizer.json, or None",
            got=shown(text),
            hint="Give None where there is no tokenizer that can be read.",
        )


@CHECKPOINT_SOURCE.check(
    "every weight is there, float32 on the CPU, of its shape, finite, and the same twice"
)
def weights_on_demand(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path:
        model, again = opened(subject, path), opened(subject, path)
        for name in model.opened.weights:
            first = model.load(name)
            if first.dtype != torch.float32 or first.device.type != "cpu":
                yield Violation(
                    case=name,
                    expected="float32 on the CPU",
                    got=f"{first.dtype} on {first.device}",
                    hint="read() converts what is stored.",
                )
            for what, other in (("read twice", model.load(name)), ("opened twice", again.load(name))):
                if not torch.equal(first, other):
                    yield Violation(
                        case=f"{name}, {what}",
                        expected="the same numbers",
                        got="others",
                        hint="read() reads the file; it keeps no place in it and draws nothing.",
                    )


@CHECKPOINT_SOURCE.check("the model that is built computes: finite logits of the vocabulary's width")
def builds_a_model(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path, torch.no_grad():
        model = opened(subject, path)
        logits = model.build()(torch.zeros(1, 3, dtype=torch.int64))
        if logits.shape != (1, 3, model.opened.description.vocab_size) or not logits.isfinite().all():
            yield Violation(
                case="three tokens",
                expected=f"finite logits [1, 3, {model.opened.description.vocab_size}]",
                got=f"{tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of them not finite",
                hint="Look at the description first: widths, norm, theta.",
            )


@CHECKPOINT_SOURCE.check(
    "a file that is missing, empty or cut off is an error that names it, and nothing else"
)
def damage_is_said(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path:
        files = [each for each in sorted(path.rglob("*")) if each.is_file()] if path.is_dir() else [path]
        largest = max(files, key=lambda file: file.stat().st_size)
        for file in files:
            content = file.read_bytes()
            for damage, left in (
                ("cut off", content[: len(content) // 2]),
                ("empty", b""),
                ("missing", None),
            ):
                if left is None:
                    file.unlink()
                else:
                    file.write_bytes(left)
                yield from _ends_well(subject, path, case=f"{file.name} {damage}", needed=file == largest)
            file.write_bytes(content)


def _ends_well(subject: Subject, path: Path, *, case: str, needed: bool) -> Iterator[Violation]:
    """Opens and reads everything. needed: without the file there is no model."""

    def read_all() -> None:
        request = SourceRequest.of(path)
        if not subject.answer(request).ok:
            raise SourceError(f"{path} is declined")
        model = opened(subject, path)
        for name in model.opened.weights:
            model.load(name)

    ended = contain(read_all)
    if not isinstance(ended, Failure):
        if needed:
            yield Violation(
                case=case,
                expected="an error",
                got="a model",
                hint="Compare sizes before anything is believed.",
            )
        return
    if not isinstance(ended.error, (CheckpointError, SourceError)) or str(path) not in str(ended.error):
        yield Violation(
            case=case,
            expected="a CheckpointError that names the file",
            got=str(ended),
            hint="Raise CheckpointError with the path for what is damaged, SourceError for what is not read.",
        )


@CHECKPOINT_SOURCE.check("opening and reading writes nothing beside the model")
def writes_nothing(subject: Subject) -> Iterator[Violation]:
    with example(subject) as path:
        before = _content(path.parent)
        model = opened(subject, path)
        for name in model.opened.weights:
            model.load(name)
        changed = sorted(str(each) for each, _ in before ^ _content(path.parent))
        if changed:
            yield Violation(
                case=path.name,
                expected="every file as before, and no other",
                got=f"changed: {', '.join(changed[:3])}",
                hint="Models are often on a disk that may not be written.",
            )


def _content(folder: Path) -> set[tuple[Path, str]]:
    """Every file under the folder, with what it holds."""
    return {
        (each.relative_to(folder), hashlib.sha256(each.read_bytes()).hexdigest())
        for each in folder.rglob("*")
        if each.is_file()
    }
