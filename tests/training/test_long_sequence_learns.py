"""The long-sequence path carries what a model must learn, past the first chunk: from the window, and from a
memory block. The same steps with exact attention, and blind: with the source of the answer withheld.
"""

from __future__ import annotations

import attrs
import pytest
import torch

from dba_core.attention.long_sequence.attention import ChunkMasks
from dba_core.attention.long_sequence.plan import plan_of
from dba_core.errors import ConfigError
from dba_core.report import SilentReporter
from dba_plugins.bench import recall as recall_tasks
from dba_plugins.bench.recall import (
    COPY_DISTANCE,
    HELD_OUT_SEQUENCES,
    LENGTH,
    LONG,
    MARKS,
    SHORT_SIGHTED,
    TRAINED,
    TRAINING,
    RecallTask,
    copy_task,
    learn_recall,
    mark_task,
    measure_recall,
    recall_losses,
)

pytestmark = pytest.mark.torch


TASKS = {"copy": copy_task(), "mark": mark_task()}
#: Shares of the loss of guessing: what counts as learned, and as not learned.
LEARNED, NOT_LEARNED = 0.1, 0.9
BARELY = attrs.evolve(TRAINING, steps=2, warmup_steps=1, batch_size=2)


def check_learned(task: RecallTask, seeds: tuple[int, ...]) -> None:
    for row in measure_recall(task, seeds=seeds):
        if row.trained == "exact":
            assert row.exact < LEARNED * task.chance, row
        elif row.trained == "long":
            assert row.long < LEARNED * task.chance, row
        else:
            assert min(row.long, row.exact) > NOT_LEARNED * task.chance, row


@pytest.mark.parametrize("name", TASKS)
def test_it_learns(name: str) -> None:
    check_learned(TASKS[name], seeds=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_it_learns_from_other_seeds(name: str) -> None:
    check_learned(TASKS[name], seeds=(1, 2, 3))


@pytest.mark.slow
def test_top_left_masks_learn_nothing_past_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above must fail for the fault that it is there for: `is_causal=True` on a non-square call."""

    def top_left(self: ChunkMasks, chunk) -> torch.Tensor:
        keys = chunk.n_mem + self._n_null + chunk.older + chunk.rows
        return torch.full((chunk.rows, keys), -torch.inf).triu(1)

    monkeypatch.setattr(ChunkMasks, "of", top_left)
    task = TASKS["copy"]
    row = recall_losses(learn_recall(task, trained="long"), task, trained="long")
    assert row.long > NOT_LEARNED * task.chance


def test_copied_tokens_lie_in_the_window_of_later_chunks() -> None:
    tokens, answers = TASKS["copy"].draw(torch.Generator().manual_seed(1), 3)
    plan = plan_of(LONG, LENGTH)
    scored = range(LENGTH - answers.shape[1], LENGTH)
    assert list(scored) == [
        t for chunk in plan.chunks if not chunk.exact for t in range(chunk.start, chunk.stop)
    ]
    for t in scored:
        assert torch.equal(answers[:, t - scored.start], tokens[:, t - COPY_DISTANCE])
        (chunk,) = (chunk for chunk in plan.chunks if chunk.start <= t < chunk.stop)
        assert t - COPY_DISTANCE >= chunk.local_start
    blind = plan_of(SHORT_SIGHTED, LENGTH)
    assert all(
        t - COPY_DISTANCE < chunk.local_start
        for chunk in blind.chunks
        for t in range(chunk.start, chunk.stop)
        if t in scored
    )


@pytest.mark.parametrize("mark_tokens", [1, 4, 64])
def test_marks_lie_in_memory_blocks_of_the_last_chunk(mark_tokens: int) -> None:
    tokens, answers = mark_task(mark_tokens).draw(torch.Generator().manual_seed(1), 200)
    last = plan_of(LONG, LENGTH).chunks[-1]
    assert answers.shape == (200, last.rows)
    assert set(answers[:, 0].tolist()) == set(range(MARKS))
    for row, answer in zip(tokens, answers, strict=True):
        (places,) = torch.where(row < MARKS)
        assert len(places) == mark_tokens
        assert places[-1] - places[0] == mark_tokens - 1
        assert places[-1] < last.local_start
        assert (row[places] == answer[0]).all()
        assert (answer == answer[0]).all()
        assert row[last.start :].unique().tolist() == [mark_task().vocab_size - 1]


@pytest.mark.parametrize("mark_tokens", [0, 65])
def test_marks_that_do_not_fit_are_refused(mark_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"mark_tokens={mark_tokens} is not allowed; give 1 to 64"):
        mark_task(mark_tokens)


def test_an_unknown_way_of_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained='both' is not known; choose one of exact, long, blind"):
        learn_recall(TASKS["mark"], trained="both")


@pytest.mark.parametrize("name", TASKS)
def test_evaluated_as_trained_and_exactly(name: str) -> None:
    """`long` is the loss of the model in training mode, `exact` that of a caller's own exact pass."""
    task = TASKS[name]
    for row in measure_recall(task, training=BARELY, seeds=(3,)):
        model = learn_recall(task, trained=row.trained, seed=3, training=BARELY)
        held_out = task.draw(torch.Generator().manual_seed(2**32 + 3), HELD_OUT_SEQUENCES)
        with torch.no_grad():
            assert float(recall_tasks._loss(model.eval(), *held_out)) == pytest.approx(row.exact, rel=1e-6)
            in_training_mode = float(recall_tasks._loss(model.train(), *held_out))
        if row.trained == "exact":
            assert in_training_mode == pytest.approx(row.exact, rel=1e-6)
            assert row.long != row.exact
        else:
            assert in_training_mode == pytest.approx(row.long, rel=1e-6)


def test_rows_are_every_way_of_training_with_every_seed() -> None:
    rows = measure_recall(TASKS["mark"], training=BARELY, seeds=(0, 5))
    assert [(row.trained, row.seed) for row in rows] == [(t, s) for t in TRAINED for s in (0, 5)]
    assert all(row.chance == pytest.approx(1.3862943611) for row in rows)
    assert len({row.exact for row in rows}) == 6  # six models


def test_the_report_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(task: RecallTask, *, seeds) -> list[recall_tasks.RecallLosses]:
        return [
            recall_tasks.RecallLosses(
                task=task.name, trained=t, seed=s, chance=task.chance, exact=s + i, long=s + i + 0.5
            )
            for i, t in enumerate(TRAINED)
            for s in seeds
        ]

    monkeypatch.setattr(recall_tasks, "measure_recall", rows)
    report = recall_tasks.run(recall_tasks.RecallBench(seeds=5), SilentReporter())
    assert [row["task"] for row in report.rows] == ["copy"] * 3 + ["mark of 4"] * 3
    assert report.rows[2]["exact_text"] == "4.0000 (2.0000 to 6.0000)"
    assert report.rows[2]["long"] == 4.5
    assert report.rows[0]["chance"] == pytest.approx(2.7725887)
