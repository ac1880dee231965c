"""The training loop: batches -> steps -> evaluations -> checkpoints, resumable to the same bits.

Step n uses the n-th batch of the sampler and its learning rate. After it come, in this order and where due:
its metrics line, the evaluation, the answer to a request to stop, the checkpoint. The reporter hears of each
on the main process, between steps; one that raises KeyboardInterrupt stops the run like Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import attrs
import torch

from dba_core.config.run import RunConfig
from dba_core.data.corpus import Corpus
from dba_core.errors import ConfigError, TrainingError
from dba_core.evaluation.metrics import exp_or_inf, held_out_loss
from dba_core.free_memory import peak_memory_bytes, reset_peak_memory
from dba_core.model.language_model import LanguageModel
from dba_core.report import Reporter, SilentReporter
from dba_core.training.checkpoint import has_checkpoint
from dba_core.training.distributed import World
from dba_core.training.metrics_log import MetricsLog
from dba_core.training.session import Progress, Session
from dba_core.training.step import Gradients, TrainingStep, autocast, learning_rate

if TYPE_CHECKING:
    from signal import _HANDLER

SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform != "win32":
    SIGNALS += (signal.SIGHUP,)


@attrs.frozen(kw_only=True)
class TrainingStarted:
    """Before the first step. first_step: steps that an earlier part of the run has finished."""

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


@attrs.frozen(kw_only=True)
class TrainingResult:
    """What one call of `train` did.

    first_step: finished steps before it; progress: of the whole run after it. seconds: this call, all
    included. tokens_per_second: of the global batch, evaluations and checkpoints left out; 0 without a step.
    peak_memory_bytes: see `free_memory`. interrupted: stopped before config.training.steps.
    """

    first_step: int
    progress: Progress
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    interrupted: bool


def train(
    model: LanguageModel,
    corpus: Corpus,
    config: RunConfig,
    *,
    checkpoint_dir: Path,
    metrics_path: Path,
    resume: bool = False,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train `model` in place up to `config.training.steps`.

    resume: go on from `checkpoint_dir`'s `last` to the same bits as without the stop; all processes must
    see that folder. world: None is this process alone, on the model's device. reporter: hears the events on
    the main process. Ctrl-C, SIGTERM and SIGHUP finish the step, save `last` and return with
    interrupted=True; before the first step of a process alone they raise KeyboardInterrupt. Raises
    ConfigError, CheckpointError, DataError, and TrainingError for a loss or gradient that is not finite. The
    caller's random state and the model's mode are left as they were.
    """
    world = World(0, 1, model.device) if world is None else world
    _check(model, config, world)
    started = time.perf_counter()
    reset_peak_memory(world.device)
    cuda = [world.device] if world.device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.callback(model.train, model.training)
        model.train()
        session = Session(model, corpus, config, checkpoint_dir=checkpoint_dir, world=world)
        session.restore() if resume else session.start_new()
        first_step = session.progress.step
        log: MetricsLog | None = None
        if world.is_main:
            log = stack.enter_context(MetricsLog(metrics_path, resume_step=first_step if resume else None))
        stop = stack.enter_context(StopRequest(at_once=world.size == 1))
        loop = _Loop(session, stop, log, reporter if reporter and world.is_main else SilentReporter())
        interrupted = loop.run()
    return TrainingResult(
        first_step=first_step,
        progress=session.progress,
        seconds=time.perf_counter() - started,
        tokens_per_second=loop.tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(world.device),
        interrupted=interrupted,
    )


def _check(model: LanguageModel, config: RunConfig, world: World) -> None:
    """Refuse what cannot be trained here before anything is written."""
    shares = world.size * config.training.grad_accum
    if config.training.batch_size % shares:
        raise ConfigError(
            f"{config.training.batch_size} sequences cannot be shared by {world.size} process(es) x "
            f"grad_accum={config.training.grad_accum}; give a multiple of {shares}",
            path="training.batch_size",
        )
    if model.device != world.device:
        raise ConfigError(
            f"the model is on {model.device}, training on {world.device}; build it there", path="device"
        )


class _Loop:
    """What happens at each step, in which order, and who is told."""

    def __init__(
        self, session: Session, stop: StopRequest, log: MetricsLog | None, reporter: Reporter
    ) -> None:
        self._session = session
        self._stop = stop
        self._log = log
        self._reporter = reporter
        self._settings = session.config.training
        self._step = TrainingStep(session.model, session.optimizer, session.config, session.world)
        self._tokens_per_step = self._settings.batch_size * session.model.config.context
        self._seconds = 0.0
        self._steps = 0
        self._saved = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        return self._steps * self._tokens_per_step / self._seconds if self._steps else 0.0

    def run(self) -> bool:
        """All remaining steps. Returns whether a request to stop ended them early."""
        progress, steps, world_size = self._session.progress, self._settings.steps, self._session.world.size
        self._emit(TrainingStarted(first_step=progress.step, steps=steps, world_size=world_size))
        if steps == 0:
            self._save(self._evaluate())
        stopping = False
        while progress.step < steps and not stopping:
            stopping = self._one_step()
        return stopping

    def _one_step(self) -> bool:
        """One optimizer step and what is due after it. Returns whether to stop before the last step."""
        settings, progress = self._settings, self._session.progress
        gradients = self._optimize()
        pointers: tuple[str, ...] = ()
        if progress.step % settings.eval_every == 0 or progress.step == settings.steps:
            pointers = self._evaluate()
        elif gradients.save or (settings.checkpoint_every and progress.step % settings.checkpoint_every == 0):
            pointers = ("last",)
        asked = self._stop.requested if self._session.world.size == 1 else gradients.stop
        stopping = asked and progress.step < settings.steps
        try:
            if stopping:
                self._emit(Interrupted(step=progress.step))
        finally:  # a listener whose terminal is gone, which is what SIGHUP says, must not cost the checkpoint
            if pointers or stopping:
                self._save(pointers or ("last",))
        return stopping

    def _optimize(self) -> Gradients:
        """One optimizer step on the next batch. Raises TrainingError for a loss or gradient that is not
        finite, before it reaches the weights.
        """
        session, steps = self._session, self._settings.steps
        lr, step = learning_rate(session.progress.step, self._settings), session.progress.step + 1
        # The clock of the main process alone asks for a checkpoint; it tells the others.
        limit = 60 * self._settings.checkpoint_minutes if session.world.is_main else 0
        due = limit > 0 and time.monotonic() - self._saved >= limit
        begun = time.perf_counter()
        exact = session.config.model.train_long_seq.exact_step(step)
        with session.model.exact_in_training() if exact else contextlib.nullcontext():
            gradients = self._step.gradients(*session.sampler.next(), stop=self._stop.requested, save=due)
        if not (math.isfinite(gradients.loss) and math.isfinite(gradients.grad_norm)):
            raise self._not_finite(
                f"step {step} at learning rate {lr:g} has loss {gradients.loss:g} and gradient norm "
                f"{gradients.grad_norm:g}"
            )
        self._step.apply(lr=lr)
        session.progress.step = step
        self._stop.at_once = False  # from here on there is something to save
        self._seconds += time.perf_counter() - begun
        self._steps += 1
        event = StepFinished(
            step=step,
            steps=steps,
            loss=gradients.loss,
            lr=lr,
            grad_norm=gradients.grad_norm,
            tokens=step * self._tokens_per_step,
            tokens_per_second=self.tokens_per_second,
            seconds=self._seconds,
            remaining_seconds=self._seconds / self._steps * (steps - step),
        )
        if self._log and (step == 1 or step % self._settings.log_every == 0 or step == steps):
            row = attrs.asdict(event, filter=attrs.filters.exclude("steps", "remaining_seconds"))
            self._log.write({"kind": "train", **row})
        self._emit(event)
        return gradients

    def _evaluate(self) -> tuple[str, ...]:
        """The held-out loss, computed by the main process and told to all. Returns the pointers that a
        checkpoint of this step deserves.
        """
        session, progress, world = self._session, self._session.progress, self._session.world
        begun = time.perf_counter()
        told = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss, tokens
        if world.is_main:
            with autocast(world.device, session.config.dtype):
                result = held_out_loss(
                    session.model,
                    session.corpus.held_out,
                    context=session.model.config.context,
                    batch_size=self._settings.batch_size,
                    limit_tokens=self._settings.eval_tokens,
                )
            told += torch.tensor([result.loss, result.tokens], dtype=torch.float64, device=told.device)
        world.broadcast([told])
        loss, tokens = told.tolist()
        if not math.isfinite(loss):
            raise self._not_finite(f"the evaluation after step {progress.step} has loss {loss:g}")
        is_best = progress.best_loss is None or loss < progress.best_loss
        progress.eval_loss = loss
        if is_best:
            progress.best_loss, progress.best_step = loss, progress.step
        event = Evaluated(
            step=progress.step,
            loss=loss,
            perplexity=exp_or_inf(loss),
            tokens=int(tokens),
            seconds=time.perf_counter() - begun,
            is_best=is_best,
        )
        if self._log:
            self._log.write({"kind": "eval", **attrs.asdict(event)})
        self._emit(event)
        return ("best", "last") if is_best else ("last",)

    def _save(self, pointers: tuple[str, ...]) -> None:
        path = self._session.save(pointers)
        self._saved = time.monotonic()
        if path is not None:
            self._emit(CheckpointSaved(step=self._session.progress.step, which=pointers, path=path))

    def _emit(self, event: object) -> None:
        try:
            self._reporter.event(event)
        except KeyboardInterrupt:
            if self._stop.at_once:
                raise
            self._stop.requested = True

    def _not_finite(self, what: str) -> TrainingError:
        folder = self._session.checkpoint_dir
        good = f"The last good checkpoint is {folder / 'last'}"
        if not has_checkpoint(folder, "last"):
            good = "No checkpoint was saved yet"
        return TrainingError(
            f"{what}; training stopped before saving or applying it. {good}. Lower training.lr, lengthen "
            "training.warmup_steps or lower training.grad_clip, and start a new run"
        )


class StopRequest(contextlib.ExitStack):
    """Ctrl-C, SIGTERM and SIGHUP: `with StopRequest() as stop:` ... `if stop.requested:`.

    The handlers are set only inside the block, on the main thread, and the previous ones put back after it. A
    signal puts its own previous handler back, so that a second one of the same kind acts at once; torchrun
    and cluster managers may send one of each. A SIGHUP that is ignored (nohup) stays ignored. at_once: a
    signal raises KeyboardInterrupt where it arrives, as long as this is true: nothing is there to save.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        super().__init__()
        self.requested = False
        self.at_once = at_once

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = signal.getsignal(number)
                if previous != signal.SIG_IGN or number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, functools.partial(self._on_signal, previous))
                    self.callback(signal.signal, number, previous)
        return self

    def _on_signal(self, previous: _HANDLER, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, previous)
        if self.at_once:
            raise KeyboardInterrupt
