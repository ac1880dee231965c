"""Stop anywhere, go on later: the same losses, the same weights, the same files, bit for bit."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from tiny_run import Trained, build, events_of, run, tiny_config, tiny_corpus

from dba_core.config.run import RunConfig
from dba_core.errors import CheckpointError, ConfigError
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_core.training.checkpoint import read_checkpoint
from dba_core.training.loop import Evaluated, Interrupted, StepFinished, TrainingStarted
from dba_core.training.metrics_log import read_metrics

pytestmark = pytest.mark.torch


CONFIG = tiny_config()
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(folder, CONFIG)


def stop_at(step: int):
    def listen(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == step:
            raise KeyboardInterrupt

    return listen


class Killed(BaseException):
    """A process that is gone: no checkpoint is written on the way out."""


def killed_at(step: int):
    def listen(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == step:
            raise Killed

    return listen


def numbers(folder: Path) -> list[dict]:
    """The metrics without what a clock says."""
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same(folder: Path, trained: Trained, straight: tuple[Path, Trained]) -> None:
    expected_folder, expected = straight
    pairs = zip(trained.model.parameters(), expected.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert numbers(folder) == numbers(expected_folder)
    assert trained.result.progress == expected.result.progress
    for which in ("best", "last"):
        one, two = (read_checkpoint(each / "checkpoint", which) for each in (folder, expected_folder))
        assert {**one.state, "files": None} == {**two.state, "files": None}
        for name in ("model", "optimizer", "random"):
            mine, theirs = one.tensors(name), two.tensors(name)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("step", [1, 11, 15, 19])
def test_interrupted_and_resumed_equals_never_stopped(
    tmp_path: Path, straight: tuple[Path, Trained], step: int
) -> None:
    first = run(tmp_path, CONFIG, on_event=stop_at(step))
    assert first.result.interrupted
    assert first.result.progress.step == step
    assert isinstance(first.events[-2], Interrupted)
    second = run(tmp_path, CONFIG, resume=True)
    assert second.events[0] == TrainingStarted(first_step=step, steps=20, world_size=1)
    assert (second.result.first_step, second.result.interrupted) == (step, False)
    losses = [e.loss for part in (first, second) for e in events_of(part, StepFinished)]
    assert losses == [e.loss for e in events_of(straight[1], StepFinished)]
    assert_same(tmp_path, second, straight)


def test_stopped_three_times(tmp_path: Path, straight: tuple[Path, Trained]) -> None:
    run(tmp_path, CONFIG, on_event=stop_at(3))
    run(tmp_path, CONFIG, resume=True, on_event=stop_at(4))
    run(tmp_path, CONFIG, resume=True, on_event=stop_at(12))
    assert_same(tmp_path, run(tmp_path, CONFIG, resume=True), straight)


def test_killed_and_resumed_goes_back_to_the_last_checkpoint(
    tmp_path: Path, straight: tuple[Path, Trained]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, CONFIG, on_event=killed_at(14))
    assert [row["step"] for row in numbers(tmp_path)][-1] == 14 or numbers(tmp_path)[-1]["step"] == 12
    second = run(tmp_path, CONFIG, resume=True)
    assert second.result.first_step == 10
    assert_same(tmp_path, second, straight)


def test_how_often_to_log_and_to_save_may_change(tmp_path: Path, straight: tuple[Path, Trained]) -> None:
    run(tmp_path, CONFIG, on_event=stop_at(11))
    often = attrs.evolve(CONFIG, training=attrs.evolve(CONFIG.training, log_every=1, checkpoint_every=1))
    second = run(tmp_path, often, resume=True)
    pairs = zip(second.model.parameters(), straight[1].model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_generators_of_the_process_do_not_matter(tmp_path: Path, straight: tuple[Path, Trained]) -> None:
    torch.manual_seed(1)
    run(tmp_path, CONFIG, on_event=stop_at(11))
    torch.manual_seed(2)
    assert_same(tmp_path, run(tmp_path, CONFIG, resume=True), straight)


def changed(**fields: object) -> RunConfig:
    """The configuration with one thing changed, by dotted path."""
    config = CONFIG
    for path, value in fields.items():
        part, _, name = path.rpartition("__")
        config = (
            attrs.evolve(config, **{part: attrs.evolve(getattr(config, part), **{name: value})})
            if part
            else attrs.evolve(config, **{name: value})
        )
    return config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"training__lr": 2e-2}, "training.lr was 0.01 and is now 0.02"),
        ({"training__steps": 30}, "training.steps was 20 and is now 30"),
        ({"training__batch_size": 8}, "training.batch_size was 4 and is now 8"),
        ({"training__grad_accum": 1}, "training.grad_accum was 2 and is now 1"),
        ({"training__eval_every": 4}, "training.eval_every was 5 and is now 4"),
        ({"seed": 4}, "seed was 1337 and is now 4"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is now 'bfloat16'"),
        ({"model__dropout": 0.0}, "model.dropout was 0.1 and is now 0.0"),
        ({"model__d_ff": 32}, "model.d_ff was 24 and is now 32"),
        ({"plugins__gate": PluginChoice("static")}, "plugins.gate.name was 'causal' and is now 'static'"),
    ],
)
def test_other_numbers_are_refused_by_name(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    run(tmp_path, CONFIG, on_event=stop_at(1))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, changed(**fields), resume=True)
    assert says in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_text_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CONFIG, on_event=stop_at(1))
    text = bytes(tiny_corpus().tokens.astype("uint8"))
    with pytest.raises(ConfigError, match=r"data\.sha256 was"):
        run(tmp_path, CONFIG, resume=True, corpus=tiny_corpus(text.replace(b"square", b"cube")))


def test_a_finished_run_has_nothing_to_resume(straight: tuple[Path, Trained]) -> None:
    with pytest.raises(CheckpointError, match=r"has finished its 20 steps; there is nothing to resume"):
        run(straight[0], CONFIG, resume=True)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint 'last'"):
        run(tmp_path, CONFIG, resume=True)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_damaged_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, CONFIG, on_event=stop_at(7))
    path = read_checkpoint(tmp_path / "checkpoint", "last").path / "optimizer.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    model = build(CONFIG)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is not what was written.*Copy"):
        run(tmp_path, CONFIG, resume=True, model=model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build(CONFIG).parameters(), strict=True))


def test_a_recorded_choice_resumes_what_auto_chose(tmp_path: Path, straight: tuple[Path, Trained]) -> None:
    """`resolved_config.json` names plugins and holds derived numbers; it resumes the run they are from."""
    first = run(tmp_path, CONFIG, on_event=stop_at(11))
    selections = first.model.attentions[0].selections
    chosen = {kind: each.choice() for kind, each in selections.items() if kind != "decode_backend"}
    knobs = CONFIG.model.train_long_seq.resolved(context=16, device="cpu")
    model = attrs.evolve(CONFIG.model.resolved(), train_long_seq=knobs)
    resolved = attrs.evolve(CONFIG, model=model, plugins=PluginChoices(**chosen))
    assert_same(tmp_path, run(tmp_path, resolved, resume=True), straight)


def test_evaluations_do_not_disturb_the_training(tmp_path: Path, straight: tuple[Path, Trained]) -> None:
    """The same losses however often it is evaluated: an evaluation draws no random number."""
    rarely = attrs.evolve(CONFIG, training=attrs.evolve(CONFIG.training, eval_every=20))
    trained = run(tmp_path, rarely)
    assert len(events_of(trained, Evaluated)) == 1
    losses = [event.loss for event in events_of(trained, StepFinished)]
    assert losses == [event.loss for event in events_of(straight[1], StepFinished)]
