"""The loop: what it leaves, in which order it tells about it, and what it refuses before it starts."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
import torch
from tiny_run import Trained, build, events_of, load_weights, run, tiny_config, tiny_corpus, without_dropout

from dba_core.errors import CheckpointError, ConfigError, DataError, TrainingError
from dba_core.evaluation.metrics import held_out_loss
from dba_core.training.checkpoint import read_checkpoint
from dba_core.training.distributed import World
from dba_core.training.loop import CheckpointSaved, Evaluated, StepFinished, TrainingStarted
from dba_core.training.metrics_log import read_metrics
from dba_core.training.step import learning_rate

pytestmark = pytest.mark.torch


CONFIG = tiny_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return run(folder, CONFIG)


def test_it_learns(trained: Trained) -> None:
    losses = [event.loss for event in events_of(trained, StepFinished)]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(math.log(256), abs=0.05)
    assert losses[-1] < losses[0] - 1


def test_every_step_is_told_with_its_numbers(trained: Trained) -> None:
    steps = events_of(trained, StepFinished)
    assert [event.step for event in steps] == list(range(1, 21))
    assert [event.lr for event in steps] == [learning_rate(step, CONFIG.training) for step in range(20)]
    assert [event.tokens for event in steps] == [step * 4 * 16 for step in range(1, 21)]
    assert all(event.grad_norm > 0 and event.tokens_per_second > 0 for event in steps)
    assert steps[-1].remaining_seconds == 0
    assert steps[3].remaining_seconds == pytest.approx(steps[3].seconds * 4)


def test_the_order_of_events(trained: Trained) -> None:
    assert isinstance(trained.events[0], TrainingStarted)
    around = [type(event) for event in trained.events[1:8]]
    assert around == [*[StepFinished] * 5, Evaluated, CheckpointSaved]
    assert [event.step for event in events_of(trained, CheckpointSaved)] == [5, 10, 15, 20]


def test_the_result_says_what_happened(trained: Trained) -> None:
    result, evaluations = trained.result, events_of(trained, Evaluated)
    assert (result.first_step, result.progress.step, result.interrupted) == (0, 20, False)
    best = min(evaluations, key=lambda event: event.loss)
    assert (result.progress.best_step, result.progress.best_loss) == (best.step, best.loss)
    assert result.progress.eval_loss == evaluations[-1].loss
    assert result.seconds > 20 * 64 / result.tokens_per_second
    assert result.peak_memory_bytes > 50e6


def test_metrics_hold_the_logged_steps_and_the_evaluations(folder: Path, trained: Trained) -> None:
    rows = read_metrics(folder / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [1, *range(2, 21, 2)]
    told = {event.step: event for event in events_of(trained, StepFinished)}
    for row in train:
        assert all(row[name] == getattr(told[row["step"]], name) for name in row if name != "kind")
        assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds"} <= row.keys()
    held_out = [row for row in rows if row["kind"] == "eval"]
    assert [(row["step"], row["loss"]) for row in held_out] == [
        (event.step, event.loss) for event in events_of(trained, Evaluated)
    ]
    assert rows.index(held_out[-1]) == len(rows) - 1


def test_evaluations_are_the_held_out_loss_of_the_saved_weights(folder: Path, trained: Trained) -> None:
    model = build(attrs.evolve(CONFIG, seed=0))
    for which, step in (("best", trained.result.progress.best_step), ("last", 20)):
        stored = load_weights(model, folder / "checkpoint", which)
        assert stored.state["step"] == step
        told = next(event for event in events_of(trained, Evaluated) if event.step == step)
        found = held_out_loss(model, tiny_corpus().held_out, context=16, batch_size=4, limit_tokens=100)
        assert found.loss == pytest.approx(told.loss, rel=1e-6)
        assert (told.tokens, told.perplexity) == (100, pytest.approx(math.exp(told.loss)))


def test_best_stays_where_the_loss_was_lowest(tmp_path: Path) -> None:
    """Spoiled weights after step 5: `best` must not follow `last`. Regression: it was never written."""
    config = without_dropout(tiny_config(lr=1e-2, warmup_steps=0, min_lr_ratio=1.0, steps=10))
    first = run(tmp_path, attrs.evolve(config, training=attrs.evolve(config.training, steps=5)))
    weights = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}

    def spoil(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == 6:
            for parameter in second.parameters():
                parameter.data.mul_(50)

    second = build(config)
    trained = run(tmp_path / "second", config, model=second, on_event=spoil)
    assert trained.result.progress.best_step == 5
    assert trained.result.progress.eval_loss > trained.result.progress.best_loss
    saved = [event.which for event in events_of(trained, CheckpointSaved)]
    assert saved == [("best", "last"), ("last",)]
    stored = read_checkpoint(tmp_path / "second" / "checkpoint", "best")
    assert all(torch.equal(stored.tensors("model")[name], tensor) for name, tensor in weights.items())
    assert read_checkpoint(tmp_path / "second" / "checkpoint", "last").state["step"] == 10


def test_the_same_run_twice_gives_the_same_bits(tmp_path: Path, trained: Trained) -> None:
    torch.manual_seed(12345)
    again = run(tmp_path, CONFIG)
    assert [e.loss for e in events_of(again, StepFinished)] == [
        e.loss for e in events_of(trained, StepFinished)
    ]
    pairs = zip(again.model.parameters(), trained.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_callers_random_state_and_the_models_mode_are_left_alone(tmp_path: Path) -> None:
    config, state = tiny_config(steps=2), torch.get_rng_state()
    model = build(config).eval()
    run(tmp_path, config, model=model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_no_steps_still_leave_an_evaluation_and_a_checkpoint(tmp_path: Path) -> None:
    trained = run(tmp_path, tiny_config(steps=0))
    assert trained.result.progress.step == 0
    assert trained.result.progress.best_step == 0
    assert trained.result.progress.eval_loss == pytest.approx(math.log(256), abs=0.05)
    assert trained.result.tokens_per_second == 0.0
    assert read_checkpoint(tmp_path / "checkpoint", "best").state["step"] == 0


def test_checkpoints_between_evaluations(tmp_path: Path) -> None:
    trained = run(tmp_path, tiny_config(steps=10, eval_every=10, checkpoint_every=4))
    saved = [(event.step, event.which) for event in events_of(trained, CheckpointSaved)]
    assert saved == [(4, ("last",)), (8, ("last",)), (10, ("best", "last"))]


def test_a_folder_that_holds_a_run_is_not_touched(folder: Path, trained: Trained, tmp_path: Path) -> None:
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="already holds a run"):
        run(folder, CONFIG)
    (tmp_path / "metrics.jsonl").write_bytes(before)
    with pytest.raises(CheckpointError, match="already holds the metrics"):
        run(tmp_path, CONFIG)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert (folder / "metrics.jsonl").read_bytes() == before


def poison(model: torch.nn.Module, value: float) -> None:
    model.tok_emb.weight.data[ord("1")] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path: Path, value: float) -> None:
    model = build(CONFIG)

    def spoil(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == 7:
            poison(model, value)

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, CONFIG, model=model, on_event=spoil)
    text = str(caught.value)
    assert "step 8 at learning rate" in text
    assert f"{learning_rate(7, CONFIG.training):g}" in text
    assert str(tmp_path / "checkpoint" / "last") in text
    assert all(p.isfinite().all() for name, p in model.named_parameters() if name != "tok_emb.weight")
    stored = read_checkpoint(tmp_path / "checkpoint", "last")
    assert stored.state["step"] == 5
    assert all(tensor.isfinite().all() for tensor in stored.tensors("model").values())


def test_a_loss_that_is_not_finite_before_any_checkpoint(tmp_path: Path) -> None:
    model = build(CONFIG)
    poison(model, math.nan)
    with pytest.raises(TrainingError, match=r"step 1 .*No checkpoint was saved yet"):
        run(tmp_path, CONFIG, model=model)


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    model = build(CONFIG)
    model.ln_f.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"gradient norm (inf|nan)"):
        run(tmp_path, CONFIG, model=model)
    assert torch.equal(model.tok_emb.weight, build(CONFIG).tok_emb.weight)


def test_an_evaluation_that_is_not_finite_saves_nothing(tmp_path: Path) -> None:
    model = build(CONFIG)

    def spoil(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == 10:
            poison(model, math.nan)

    with pytest.raises(TrainingError, match="the evaluation after step 10 has loss nan"):
        run(tmp_path, CONFIG, model=model, on_event=spoil)
    assert read_checkpoint(tmp_path / "checkpoint", "last").state["step"] == 5


def test_a_token_out_of_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    config = attrs.evolve(CONFIG, model=attrs.evolve(CONFIG.model, vocab_size=100))
    with pytest.raises(DataError, match="out of the vocabulary"):
        run(tmp_path, config)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"training.batch_size: 4 .* 3 process.*grad_accum=2; give a multiple of 6"
    ):
        run(tmp_path, CONFIG, world=World(0, 3, "cpu"))
    assert not list(tmp_path.iterdir())


def test_a_model_on_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model is on meta, training on cpu"):
        run(tmp_path, CONFIG, model=build(CONFIG).to("meta"), world=World())


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    config = attrs.evolve(tiny_config(steps=20), dtype="bfloat16")
    losses = [event.loss for event in events_of(run(tmp_path, config), StepFinished)]
    assert losses[-1] < losses[0] - 1
