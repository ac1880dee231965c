"""A run's files damaged in every way: whatever is read of them is right, or one error of DBA."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from runs_tiny import dba

from dba_core.data.corpus import load_corpus
from dba_core.errors import CheckpointError, DBAError, RecordMismatchError
from dba_core.model.language_model import LanguageModel
from dba_core.runs.evaluate import text_of
from dba_core.runs.folder import RunFolder, read_resolved
from dba_core.runs.load import load_run
from dba_core.runs.prepare import model_choices
from dba_core.training.checkpoint import read_checkpoint
from dba_core.training.distributed import World
from dba_core.training.metrics_log import read_metrics
from dba_core.training.session import Session

pytestmark = pytest.mark.torch

ODD: tuple[Any, ...] = (
    None, True, [], {}, "", "x", -1, 0, 1 << 70, 1.5, [[]], {"a": None}, "../../etc", "/etc", "\u202e",
    "9" * 400,
)  # fmt: skip


def copied(folder: RunFolder, to: Path) -> RunFolder:
    shutil.copytree(folder.path, to)
    return RunFolder(to)


def sign(folder: RunFolder, state: Any, *, damage: Callable[[Path], None] = lambda step: None) -> None:
    """Write this state, and pointers that fit it; `damage` may change the files before."""
    (step,) = folder.checkpoint.glob("step-*")
    damage(step)
    if isinstance(state, dict) and isinstance(state.get("files"), dict):
        for name, entry in state["files"].items():
            if isinstance(entry, dict) and (step / name).is_file():
                raw = (step / name).read_bytes()
                entry |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    text = json.dumps(state)
    (step / "state.json").write_text(text, encoding="utf-8")
    pointer = {"directory": step.name, "state_sha256": hashlib.sha256(text.encode()).hexdigest()}
    for which in ("best", "last"):
        (folder.checkpoint / which).write_text(json.dumps(pointer))


def state_of(folder: RunFolder) -> dict[str, Any]:
    (path,) = folder.checkpoint.glob("step-*/state.json")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


@pytest.fixture
def mine(tiny, tmp_path: Path) -> RunFolder:
    """A copy of the finished run, to be damaged."""
    return copied(tiny.folder, tmp_path / "mine")


def change_config(folder: RunFolder, **changes: Any) -> None:
    data = json.loads(folder.config_file.read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        table = data
        for name in path:
            table = table[name]
        table[last] = value
    folder.config_file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "seed was 5 and is now 6"),
        ({"training__lr": 0.5}, r"training\.lr was .* and is now 0\.5"),
        ({"model__norm_eps": 0.5}, r"model\.norm_eps was .* and is now 0\.5"),
        ({"model__attention__rope_theta": 77.0}, r"model\.attention\.rope_theta was .* and is now 77\.0"),
        (
            {"plugins__gate__options": {"init": 0.25}},
            r"plugins\.gate\.options\.init was 0\.5 and is now 0\.25",
        ),
    ],
)
def test_weights_of_another_run_are_refused(mine: RunFolder, change: dict[str, Any], message: str) -> None:
    """Shapes are the same: only the fingerprint tells."""
    change_config(mine, **change)
    with pytest.raises(RecordMismatchError, match=message):
        load_run(mine.path)


def test_what_changes_no_number_may_change(mine: RunFolder) -> None:
    change_config(mine, name="other", training__log_every=7, training__checkpoint_minutes=0.5)
    assert load_run(mine.path).warnings == ()


def test_the_finished_run_is_not_evaluated_with_other_weights(mine: RunFolder) -> None:
    change_config(mine, seed=6)
    before = mine.summary_json.read_bytes()
    for command in (["run", "--resume"], ["eval"], ["sample"], ["tune"], ["drift"]):
        more = {"sample": ["--prompt", "a"], "tune": ["--max-delta-nll", "1"]}.get(command[0], [])
        done = dba(*command, str(mine.path), *more)
        assert (done.code, "seed was 5 and is now 6" in done.err) == (5, True), done.err
    assert mine.summary_json.read_bytes() == before


def test_a_checkpoint_of_before_fingerprints_loads_and_says_so(mine: RunFolder) -> None:
    state = state_of(mine)
    del state["fingerprint"], state["fingerprint_sha256"]
    sign(mine, state)
    (warning,) = load_run(mine.path).warnings
    assert "does not say which configuration wrote it" in warning


def test_another_corpus_is_another_held_out_text(mine: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{n} blue bottles standing on the floor\n" for n in range(120)))
    change_config(mine, data__source=str(other))
    run = load_run(mine.path)
    with pytest.raises(RecordMismatchError, match=r"data\.sha256 was .*allow_drift=True"):
        text_of(run, None)
    text_of(run, str(other))
    text_of(load_run(mine.path, allow_drift=True), None)


def test_a_weight_that_is_no_number_is_named(mine: RunFolder) -> None:
    def damage(step: Path) -> None:
        weights = safetensors.torch.load_file(step / "model.safetensors")
        weights["blocks.1.attn.out_proj.weight"][3, 4] = float("nan")
        safetensors.torch.save_file(weights, step / "model.safetensors")

    sign(mine, state_of(mine), damage=damage)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.out_proj\.weight holds 1 of .* \[3, 4\]"):
        load_run(mine.path)


@pytest.mark.parametrize(
    "pointer",
    [
        None,
        [],
        "../../etc",
        {"directory": "../../etc", "state_sha256": "0" * 64},
        {"directory": "/etc", "state_sha256": "0" * 64},
        {"directory": 3, "state_sha256": "0" * 64},
        {"directory": "step-00000008-12345678\n", "state_sha256": "0" * 64},
        {"directory": "step-00000008-12345678", "state_sha256": None},
        {"directory": "step-00000008-12345678"},
    ],
)
def test_a_pointer_names_a_step_beside_it_and_nothing_else(mine: RunFolder, pointer: Any) -> None:
    (mine.checkpoint / "last").write_text(json.dumps(pointer))
    with pytest.raises(CheckpointError, match=r"no checkpoint pointer.*Copy .*best over .*last"):
        read_checkpoint(mine.checkpoint, "last")


def test_the_other_checkpoint_is_offered_only_if_it_is_whole(mine: RunFolder) -> None:
    (step,) = mine.checkpoint.glob("step-*")
    (mine.checkpoint / "last").write_text("{}")
    (step / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Restore it from a copy, or train again"):
        read_checkpoint(mine.checkpoint, "last")


BAD_LINES = (
    "null", "[]", "3", "{}", '{"kind": "train", "loss": 1}', '{"kind": "train", "step": "1", "loss": 1}',
    '{"kind": "train", "step": 1, "loss": NaN}', '{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}",
    "[" * 100_000, '{"kind": "x", "step": 1, "loss": 1}', '{"kind": "train", "step": true, "loss": 1}',
    "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=[line[:20] for line in BAD_LINES])
def test_a_line_of_metrics_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        read_metrics(path)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every entry of a document."""
    for key, item in value.items() if isinstance(value, dict) else []:
        yield (*path, key)
        yield from places(item, (*path, key))


def damaged(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with another value there; ... takes the entry away."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    table: Any = copy
    for key in path[:-1]:
        table = table[key]
    if value is ...:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return copy


def outcomes(attempt: Callable[[], object], errors: list[str]) -> bool:
    """Whether it went well; an error of DBA is kept, any other goes on."""
    try:
        attempt()
    except DBAError as error:
        errors.append(str(error))
        return False
    return True


def test_any_configuration_is_read_or_refused(mine: RunFolder) -> None:
    random, errors = Random(11), []
    document = json.loads(mine.config_file.read_text())
    every = list(places(document))
    for path in random.sample(every, 60):
        mine.config_file.write_text(json.dumps(damaged(document, path, random.choice([..., *ODD]))))
        outcomes(lambda: load_run(mine.path), errors)
    assert len(errors) > 20
    for raw in (b"", b"\xff\xfe", b"[]", b"null", b'{"seed": NaN}', b"[" * 100_000, b'{"a": 1, "a": 2}'):
        mine.config_file.write_bytes(raw)
        assert not outcomes(lambda: load_run(mine.path), errors)


def test_any_state_is_read_or_refused_by_loading_and_by_resuming(mine: RunFolder) -> None:
    """Signed as it is, so that the hash does not catch it first."""
    random, errors = Random(12), []
    config = read_resolved(mine)
    corpus = load_corpus(config.data, context=config.model.context)
    model = LanguageModel(config.model, plugins=model_choices(config.plugins), seed=config.seed)
    document = {**state_of(mine), "step": 4}  # a state to go on from
    sign(mine, document)

    def resume() -> None:
        Session(model, corpus, config, checkpoint_dir=mine.checkpoint, world=World()).restore()

    resume()
    keep = {path.name: path.read_bytes() for path in next(mine.checkpoint.glob("step-*")).iterdir()}
    refused = 0
    for path in random.sample(list(places(document)), 70):
        changed = damaged(document, path, random.choice([..., *ODD]))
        text = json.dumps(changed)
        (step,) = mine.checkpoint.glob("step-*")
        (step / "state.json").write_text(text)
        pointer = {"directory": step.name, "state_sha256": hashlib.sha256(text.encode()).hexdigest()}
        for which in ("best", "last"):
            (mine.checkpoint / which).write_text(json.dumps(pointer))
        outcomes(lambda: load_run(mine.path), errors)
        refused += not outcomes(resume, errors)
    assert refused > 40
    assert all((step / name).read_bytes() == raw for name, raw in keep.items() if name != "state.json")


@pytest.mark.parametrize("name", ["optimizer", "random", "model"])
def test_tensors_of_another_shape_or_name_are_refused(mine: RunFolder, name: str) -> None:
    config = read_resolved(mine)
    corpus = load_corpus(config.data, context=config.model.context)
    model = LanguageModel(config.model, plugins=model_choices(config.plugins), seed=config.seed)
    document = {**state_of(mine), "step": 4}
    (step,) = mine.checkpoint.glob("step-*")
    path = step / f"{name}.safetensors"
    whole = safetensors.torch.load_file(path)
    (first, tensor), *_ = whole.items()
    cases: dict[str, dict[str, Any]] = {
        "renamed": {**{key: value for key, value in whole.items() if key != first}, "x": tensor},
        "reshaped": {**whole, first: torch.zeros(3)},
        "empty": {},
    }
    for case, tensors in cases.items():
        if (name, case) == ("optimizer", "empty"):
            continue  # as after no step
        safetensors.torch.save_file(tensors, path)
        sign(mine, json.loads(json.dumps(document)))
        with pytest.raises(CheckpointError, match=r"safetensors|another model|is missing"):
            Session(model, corpus, config, checkpoint_dir=mine.checkpoint, world=World()).restore()
