"""What a run says about itself, as data: one attrs tree whose plain form is `summary.json`.

A loss that was not measured is None. Sizes are bytes, times seconds, losses nats per token.
"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.distribution import installed_version
from dba_core.evaluation.metrics import FidelityMetrics, PolicyFidelity
from dba_core.free_memory import peak_memory_bytes
from dba_core.runs.outline import Outline, outline_of
from dba_core.runs.sample import SampleFacts

if TYPE_CHECKING:
    from dba_core.evaluation.held_out import HeldOut
    from dba_core.evaluation.throughput import Throughput
    from dba_core.runs.folder import RunFolder
    from dba_core.runs.prepare import Prepared
    from dba_core.training.loop import TrainingResult

#: Raised when a field of summary.json changes its meaning or goes away.
SCHEMA = 1
#: The training loss of the summary is the mean over the logged steps of this last part of the run.
_LAST_PART = 0.05
#: Nats per token by which exact attention may be worse than the path without a warning.
_FAR_FROM_EXACT = 0.1


@attrs.frozen(kw_only=True)
class LossFacts:
    """Losses in nats per token.

    train: mean of the logged steps of the last 5% of the run. held_out, perplexity, bits_per_byte: of the
    `checkpoint` weights over `held_out_tokens` tokens, with exact attention. held_out_as_trained: the same
    with the long-sequence path; None where training did not take it.
    """

    train: float | None
    held_out: float
    held_out_as_trained: float | None
    perplexity: float
    bits_per_byte: float | None
    held_out_tokens: int
    checkpoint: str
    checkpoint_step: int


@attrs.frozen(kw_only=True)
class SpeedFacts:
    """Tokens per second (training: all processes; prefill and decode: one sequence) and peak memory."""

    training: float | None
    prefill: float
    decode: float
    prefill_tokens: int
    decode_tokens: int
    peak_memory_bytes: int


@attrs.frozen(kw_only=True)
class TrainingFacts:
    """How far training went."""

    steps: int
    batch_size: int
    tokens: int
    seconds: float
    processes: int


@attrs.frozen(kw_only=True)
class Environment:
    """Where the run ran."""

    device: str
    device_name: str
    dtype: str
    seed: int
    threads: int
    platform: str
    versions: dict[str, str]


@attrs.frozen(kw_only=True)
class Commands:
    """What to do next, ready to paste."""

    sample: str
    evaluate: str
    repeat: str


@attrs.frozen(kw_only=True)
class Summary(Outline):
    """Everything that a run says about itself."""

    folder: str
    finished: str
    training: TrainingFacts
    losses: LossFacts
    fidelity: FidelityMetrics | None
    speed: SpeedFacts
    sample: SampleFacts
    environment: Environment
    seconds: dict[str, float]
    plots: dict[str, str]
    commands: Commands

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that is not finite is None."""
        return {"schema": SCHEMA, **super().to_dict()}


def summarize(
    prepared: Prepared,
    folder: RunFolder,
    result: TrainingResult | None,
    *,
    step: int,
    held_out: HeldOut,
    as_trained: HeldOut | None,
    fidelity: PolicyFidelity | None,
    throughput: Throughput,
    processes: int,
    sample: SampleFacts,
    metrics: Sequence[Mapping[str, Any]],
    plots: dict[str, str],
    seconds: dict[str, float],
) -> Summary:
    """What a job found of the best weights, those of `step`. result: None where an earlier part of the run
    finished the training. as_trained: with the long-sequence path. metrics: the lines of metrics.jsonl.
    """
    config, outline = prepared.config, outline_of(prepared)
    steps, batch, path = config.training.steps, config.training.batch_size, shlex.quote(str(folder.path))
    late = [row for row in metrics if row["kind"] == "train" and row["step"] >= steps * (1 - _LAST_PART)]
    losses = LossFacts(
        train=sum(row["loss"] for row in late) / len(late) if late else None,
        held_out=held_out.loss,
        held_out_as_trained=None if as_trained is None else as_trained.loss,
        perplexity=held_out.perplexity,
        bits_per_byte=held_out.bits_per_byte,
        held_out_tokens=held_out.tokens,
        checkpoint="best",
        checkpoint_step=step,
    )
    return Summary(
        **attrs.asdict(attrs.evolve(outline, warnings=tuple(_warnings(prepared, losses))), recurse=False),
        folder=str(folder.path),
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
        training=TrainingFacts(
            steps=steps,
            batch_size=batch,
            tokens=steps * batch * config.model.context,
            seconds=0.0 if result is None else result.seconds,
            processes=processes,
        ),
        losses=losses,
        fidelity=fidelity and fidelity.figures,
        speed=SpeedFacts(
            training=None if result is None else result.tokens_per_second or None,
            **attrs.asdict(throughput),
            peak_memory_bytes=peak_memory_bytes(prepared.model.device)
            if result is None
            else result.peak_memory_bytes,
        ),
        sample=sample,
        environment=_environment(prepared),
        seconds=seconds,
        plots=plots,
        commands=Commands(
            sample=f"dba sample {path} --prompt {shlex.quote('The ')}",
            evaluate=f"dba eval {path}",
            repeat=f"dba run --config {shlex.quote(str(folder.config_file))}",
        ),
    )


def _warnings(prepared: Prepared, losses: LossFacts) -> Iterator[str]:
    """Those of the preparation, of plugins of an older contract, and of weights that decoding, which is
    exact, does not read as they were trained.
    """
    yield from prepared.warnings
    chosen = (each.selection for each in prepared.selections.placed())
    yield from {f"{each.kind} {each.name!r}: {each.deprecation}": None for each in chosen if each.deprecation}
    yield from far_from_exact(losses)


def far_from_exact(losses: LossFacts) -> Iterator[str]:
    """That exact attention reads weights worse than the path that they were trained with."""
    as_trained = losses.held_out_as_trained
    if as_trained is not None and losses.held_out - as_trained > _FAR_FROM_EXACT:
        yield (
            f"exact attention, which decoding uses, loses {losses.held_out - as_trained:.2f} nats "
            "per token more than the long-sequence path that these weights were trained with; train more "
            "steps exactly with a smaller model.train_long_seq.exact_every"
        )


def _environment(prepared: Prepared) -> Environment:
    import torch

    device = prepared.model.device
    cuda = device.type == "cuda"
    return Environment(
        device=str(device),
        device_name=torch.cuda.get_device_name(device)
        if cuda
        else f"{platform.machine()}, {os.cpu_count()} cores",
        dtype=prepared.config.dtype,
        seed=prepared.config.seed,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        versions={
            "dba": installed_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
