"""What training tells while it runs: one small record per event, to the callback that `train` was given.

Called by training.loop on the main process, between steps; the command line draws its progress bar from them.
A callback that raises KeyboardInterrupt stops the run like Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class TrainingStarted:
    """Before the first step. first_step: steps that an earlier part of the run has finished, 0 for a new
    one.
    """

    first_step: int
    steps: int
    world_size: int


@attrs.frozen(kw_only=True)
class StepFinished:
    """After every optimizer step. loss: mean cross entropy of the global batch before the step.

    tokens: trained on since step 0. tokens_per_second and seconds: of this process's part of the run, the
    time for evaluations and checkpoints left out. remaining_seconds: training time still ahead at that
    pace.
    """

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    remaining_seconds: float


@attrs.frozen(kw_only=True)
class Evaluated:
    """After an evaluation on held-out text. is_best: no earlier evaluation of the run was as low."""

    step: int
    loss: float
    perplexity: float
    tokens: int
    seconds: float
    is_best: bool


@attrs.frozen(kw_only=True)
class CheckpointSaved:
    """After a checkpoint is on the disk. which: ("last",) or ("best", "last")."""

    step: int
    which: tuple[str, ...]
    path: Path


@attrs.frozen(kw_only=True)
class Interrupted:
    """A stop was asked for: the run ends after this step, with a checkpoint of it."""

    step: int


TrainEvent = TrainingStarted | StepFinished | Evaluated | CheckpointSaved | Interrupted
