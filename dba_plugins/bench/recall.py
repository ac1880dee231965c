"""What the long-sequence path learns to recall.

Two tasks with a known best loss show what that path carries to the tokens past its first chunk:
full-resolution tokens of the window, and memory tokens.

    copy   the answer at position t is the token at t - 12: inside the window, often before the query's chunk
    mark   the answer is named by a few equal tokens somewhere in the past that only memory tokens cover

Only positions that read memory tokens are scored, in training too, and the model has one layer, so a loss
below ln(answers) came through that one attention. Each task is learned with exact attention, with the
long-sequence path, and blind: with that path and the source of the answer withheld.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig, ResolvedLongSequence
from dba_core.config.model import ModelConfig
from dba_core.config.run import TrainingConfig
from dba_core.errors import ConfigError
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.measured import measured

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dba_core.model.language_model import LanguageModel

LENGTH = 96
#: The path that both tasks are about: the first 32 queries of 96 read no memory token, the last 16 read 8.
#: With the mass correction, because the whole task is to read the far past: a memory token that starts with
#: the weight of one token is found late.
LONG = ResolvedLongSequence(threshold=1, mem_block=8, local_window=16, q_chunk=16, mass_correction=True)
EXACT = LongSequenceConfig(enabled=False)
#: A query of this path reads itself and at most 10 tokens before it at full resolution.
SHORT_SIGHTED = ResolvedLongSequence(threshold=1, mem_block=8, local_window=0, q_chunk=4)
#: How a model was trained.
TRAINED = ("exact", "long", "blind")

COPY_DISTANCE, COPY_TOKENS = 12, 16
MARKS, FILLERS, MARK_TOKENS = 4, 8, 4

TRAINING = TrainingConfig(steps=80, batch_size=16, lr=1e-2, warmup_steps=10, weight_decay=0.0)
HELD_OUT_SEQUENCES = 128
HELD_OUT_SEED = 2**32

#: (generator, number of sequences) -> tokens [B, T], answers [B, n] at the last n positions
Draw = Callable[["torch.Generator", int], "tuple[Tensor, Tensor]"]


@attrs.frozen(kw_only=True)
class RecallTask:
    """draw: random sequences and the answers at their last positions. blind: the path without the answer's
    source. memory: the source is the memory tokens, which blind models hold empty.
    """

    name: str
    vocab_size: int
    answers: int
    draw: Draw
    blind: LongSequenceConfig
    memory: bool

    @property
    def chance(self) -> float:
        """The loss of the best guess without the source, in nats: all answers are equally likely."""
        return math.log(self.answers)


@attrs.frozen(kw_only=True)
class RecallLosses:
    """Held-out cross entropy in nats of one model, by how it was trained and by how it is evaluated.

    long: with the path that it was trained with; for `exact` with `LONG` and block means.
    """

    task: str
    trained: str
    seed: int
    chance: float
    exact: float
    long: float


def copy_task() -> RecallTask:
    """Random tokens; each answer is the token `COPY_DISTANCE` positions before."""
    import torch

    from dba_core.attention.long_sequence.plan import plan_of

    first = plan_of(LONG, LENGTH).exact_stop

    def draw(generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(COPY_TOKENS, (n, LENGTH), generator=generator)  # [B, T]
        return tokens, tokens[:, first - COPY_DISTANCE : -COPY_DISTANCE]

    return RecallTask(
        name="copy",
        vocab_size=COPY_TOKENS,
        answers=COPY_TOKENS,
        draw=draw,
        blind=SHORT_SIGHTED,
        memory=False,
    )


def mark_task(mark_tokens: int = MARK_TOKENS) -> RecallTask:
    """`mark_tokens` times one of `MARKS` tokens, among random fillers; the last chunk asks which one."""
    import torch

    from dba_core.attention.long_sequence.plan import plan_of

    last = plan_of(LONG, LENGTH).chunks[-1]
    places = last.local_start - mark_tokens + 1
    if not 1 <= mark_tokens <= last.local_start:
        raise ConfigError(f"mark_tokens={mark_tokens} is not allowed; give 1 to {last.local_start}")

    def draw(generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        tokens = MARKS + torch.randint(FILLERS, (n, LENGTH), generator=generator)  # [B, T]
        mark = torch.randint(MARKS, (n, 1), generator=generator)
        start = torch.randint(places, (n, 1), generator=generator)
        tokens.scatter_(1, start + torch.arange(mark_tokens), mark.expand(n, mark_tokens))
        tokens[:, last.start :] = MARKS + FILLERS  # the question
        return tokens, mark.expand(n, last.rows)

    return RecallTask(
        name=f"mark of {mark_tokens}",
        vocab_size=MARKS + FILLERS + 1,
        answers=MARKS,
        draw=draw,
        blind=LONG,
        memory=True,
    )


def learn_recall(
    task: RecallTask, *, trained: str, seed: int = 0, training: TrainingConfig = TRAINING
) -> LanguageModel:
    """A new model after `training.steps` steps on fresh sequences; trained: one of `TRAINED`."""
    import torch

    from dba_core.model.language_model import LanguageModel
    from dba_core.training.step import build_optimizer, learning_rate

    if trained not in TRAINED:
        raise ConfigError(f"trained={trained!r} is not known; choose one of {', '.join(TRAINED)}")
    model = LanguageModel(_model_config(task, _path(task, trained)), seed=seed)
    if trained == "blind" and task.memory:
        _empty_memory(model)
    optimizer = build_optimizer(model, training)
    generator = torch.Generator().manual_seed(seed)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        loss = _loss(model, *task.draw(generator, training.batch_size))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def recall_losses(model: LanguageModel, task: RecallTask, *, trained: str, seed: int = 0) -> RecallLosses:
    """Evaluate a model of `learn_recall` on sequences that it has not seen, with and without the path."""
    import torch

    model.eval()
    held_out = task.draw(torch.Generator().manual_seed(HELD_OUT_SEED + seed), HELD_OUT_SEQUENCES)
    path = LONG if trained == "exact" else _path(task, trained)
    with torch.no_grad():
        exact = float(_loss(model, *held_out))
        with model.long_sequence(path):
            approximate = float(_loss(model, *held_out))
    return RecallLosses(
        task=task.name, trained=trained, seed=seed, chance=task.chance, exact=exact, long=approximate
    )


def measure_recall(
    task: RecallTask, *, seeds: Sequence[int] = (0,), training: TrainingConfig = TRAINING
) -> list[RecallLosses]:
    """Each way of training with each seed, the same steps and sequences for all."""
    return [
        recall_losses(
            learn_recall(task, trained=trained, seed=seed, training=training),
            task,
            trained=trained,
            seed=seed,
        )
        for trained in TRAINED
        for seed in seeds
    ]


def _path(task: RecallTask, trained: str) -> LongSequenceConfig:
    return {"exact": EXACT, "long": LONG, "blind": task.blind}[trained]


def _model_config(task: RecallTask, path: LongSequenceConfig) -> ModelConfig:
    return ModelConfig(
        vocab_size=task.vocab_size,
        context=LENGTH,
        n_layers=1,
        d_model=32,
        attention=AttentionConfig(n_heads=2, sem_head_dim=8, geo_head_dim=16, v_head_dim=16),
        train_long_seq=path,
    )


def _empty_memory(model: LanguageModel) -> None:
    """Every memory token of this model is zero from now on."""
    import torch

    def zeros(module: nn.Module, inputs: object, summaries: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(summary) for summary in summaries)

    for attention in model.attentions:
        if attention.summarizer is not None:
            attention.summarizer.register_forward_hook(zeros)


def _loss(model: LanguageModel, tokens: Tensor, answers: Tensor) -> Tensor:
    """Mean cross entropy at the last positions, those that have an answer."""
    import torch.nn.functional as F

    logits = model(tokens)[:, -answers.shape[1] :]  # [B, n, V]
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten())


@attrs.frozen(kw_only=True)
class RecallBench:
    """How many models."""

    seeds: int = option(5, help="Models of each kind.", least=1)


def run(request: RecallBench, reporter: Reporter) -> Report:
    """Train small models to recall what only the window, or only memory tokens, can tell. Takes minutes.

    \b
    Examples:
      dba bench recall
      dba bench recall --seeds 1
    """
    rows, seeds = [], request.seeds
    for task in (copy_task(), mark_task()):
        reporter.note(f"{task.name} ...")
        found = measure_recall(task, seeds=range(seeds))
        for trained in TRAINED:
            mine = [row for row in found if row.trained == trained]
            exact, long = [row.exact for row in mine], [row.long for row in mine]
            rows.append(
                {
                    "task": task.name,
                    "chance": task.chance,
                    "trained": trained,
                    "exact": statistics.median(exact),
                    "exact_losses": exact,
                    "exact_text": _spread(exact),
                    "long": statistics.median(long),
                    "long_losses": long,
                    "long_text": _spread(long),
                }
            )
    return measured(
        name="recall",
        title="What the long-sequence path learns to recall",
        command=command_line("bench.recall", request),
        columns=(
            Column("task", "task"),
            Column("chance", "chance", "{:.4f}"),
            Column("trained", "trained"),
            Column("exact_text", "evaluated exact"),
            Column("long_text", "evaluated long"),
        ),
        rows=tuple(rows),
        notes=(f"{TRAINING.steps} steps of {TRAINING.batch_size}, {seeds} seeds; nats per token",),
    )


def _spread(losses: list[float]) -> str:
    return f"{statistics.median(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"


@hookimpl
def dba_command() -> Command[RecallBench]:
    return Command(
        name="bench.recall",
        contract=1,
        summary=summary_of(__doc__),
        request_class=RecallBench,
        run=run,
    )
