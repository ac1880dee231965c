"""The main job: configuration -> plugins -> data -> model -> training -> evaluation -> folder.

Under torchrun every process trains; the main one alone writes, evaluates and reports. A run that fails or is
interrupted leaves its folder with what there is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import attrs
import torch

from dba_core.config.loading import LoadedConfig
from dba_core.config.run import RunConfig
from dba_core.documents import write_json, write_whole
from dba_core.errors import DBAError
from dba_core.registry import Registry
from dba_core.report import Reporter, SilentReporter, as_plain
from dba_core.runs.folder import (
    DEFAULT_ROOT,
    FolderInUseError,
    RunFolder,
    disk_errors,
    find_run,
    new_folder,
    one_writer,
    read_resolved,
    resuming,
)
from dba_core.runs.pages import markdown, samples_text
from dba_core.runs.prepare import Prepared, prepare, resolve_device
from dba_core.runs.summary import Summary, measured
from dba_core.training.checkpoint import has_checkpoint, read_checkpoint, restore_weights
from dba_core.training.distributed import World
from dba_core.training.fingerprint import check_written_by, fingerprint
from dba_core.training.loop import TrainingResult, train


class RunInterruptedError(DBAError):
    """The user stopped the run; its checkpoint is saved."""

    exit_code: ClassVar[int] = 130


def run_job(
    loaded: LoadedConfig,
    *,
    root: Path = DEFAULT_ROOT,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
    allow_drift: bool = False,
    strict: bool = False,
) -> Path:
    """Do a new run and return its folder, `root/<time>-<name>`. See `dba_core.errors` for what it raises.

    reporter: hears of the phases, of the events of training, and last of the `Summary`.
    """
    config = loaded.config
    with _joined(config) as world:
        job = _Job(world, registry, reporter)
        with job.phase("prepare", "Reading the data and building the model ..."):
            prepared = job.prepare(config, allow_drift=allow_drift, strict=strict)
        folder = _agree_on_folder(world, root, config.name)
        with one_group_of_writers(world, folder.path):
            if world.is_main:
                with disk_errors(folder.path, "Make room or give another root=, then start again"):
                    write_json(folder.config_file, prepared.config.to_dict())
            return job.train_and_evaluate(prepared, folder, resume=False)


def resume_job(
    run: str | Path,
    *,
    device: str | None = None,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
    allow_drift: bool = False,
    strict: bool = False,
) -> Path:
    """Go on with a run (see `find_run`) in its own folder, from its last checkpoint, with the configuration
    that it recorded.

    A run whose training is complete is evaluated again, one without a checkpoint starts from its first step.
    device: another than the recorded one. Raises FolderInUseError where another process writes there.
    """
    folder = find_run(run)
    config = read_resolved(folder)
    if device is not None:
        config = attrs.evolve(config, device=device)
    with _joined(config) as world:
        job = _Job(world, registry, reporter)
        with one_group_of_writers(world, folder.path):
            with job.phase("prepare", f"Going on with {folder.path} ..."):
                prepared = job.prepare(config, allow_drift=allow_drift, strict=strict)
            return job.train_and_evaluate(prepared, folder, resume=True)


class _Job:
    """The phases of a run and the time that each took."""

    def __init__(self, world: World, registry: Registry | None, reporter: Reporter | None) -> None:
        self.world = world
        self.registry = Registry.default() if registry is None else registry
        self.reporter: Reporter = SilentReporter() if reporter is None or not world.is_main else reporter
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Announce a phase and record its seconds."""
        self.reporter.phase(text)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def prepare(self, config: RunConfig, *, allow_drift: bool, strict: bool) -> Prepared:
        prepared = prepare(
            attrs.evolve(config, device=resolve_device(config.device)),
            self.registry,
            device=str(self.world.device),
            allow_drift=allow_drift,
            strict=strict,
            processes=self.world.size,
        )
        for warning in prepared.warnings:
            self.reporter.warning(warning)
        return prepared

    def train_and_evaluate(self, prepared: Prepared, folder: RunFolder, *, resume: bool) -> Path:
        """Everything after the folder is there. What ends it early is told with how to go on."""
        told = False  # why it ends, and how to go on
        try:
            result = self._train(prepared, folder, resume=resume and self._can_go_on(folder))
            if self.world.is_main:
                with disk_errors(folder.path, "Make room, or put the folder back and make it writable"):
                    self._evaluate(prepared, folder, result)
            told = True
        except RunInterruptedError:
            told = True
            raise
        finally:
            if not told:
                text = f"The run did not finish; what there is lies in {folder.path}."
                if not has_checkpoint(folder.checkpoint, "last"):
                    text += " No checkpoint was saved yet: it starts again from its first step."
                self.reporter.warning(f"{text} Go on with: {resuming(folder)}")
        return folder.path

    def _can_go_on(self, folder: RunFolder) -> bool:
        """Whether there is a checkpoint to go on from; without one nothing else of the training is kept."""
        there = has_checkpoint(folder.checkpoint, "last")
        self.world.barrier()  # all have looked before the main process writes
        if not there:
            self.reporter.note("No checkpoint was saved; starting from the first step.")
            if self.world.is_main:
                with disk_errors(folder.path, "Make the folder writable"):
                    folder.metrics_file.unlink(missing_ok=True)
        elif self.world.is_main and not folder.metrics_file.is_file():
            self.reporter.warning(
                f"{folder.metrics_file} is gone; the run goes on, and its curves begin where it goes on"
            )
        return there

    def _train(self, prepared: Prepared, folder: RunFolder, *, resume: bool) -> TrainingResult | None:
        """None when an earlier part of the run has finished the training."""
        config = prepared.config
        steps = config.training.steps
        if resume and read_checkpoint(folder.checkpoint, "last").step >= steps:
            self.reporter.note("The training is complete; evaluating.")
            return None
        with self.phase("train", f"Training {config.name} for {steps} steps into {folder.path} ..."):
            result = train(
                prepared.model,
                prepared.corpus,
                config,
                checkpoint_dir=folder.checkpoint,
                metrics_path=folder.metrics_file,
                resume=resume,
                world=self.world,
                reporter=self.reporter,
            )
        if result.interrupted:
            raise RunInterruptedError(
                f"Interrupted after step {result.progress.step} of {steps}; the checkpoint is saved. Go on "
                f"with: {resuming(folder)}"
            )
        return result

    def _evaluate(self, prepared: Prepared, folder: RunFolder, result: TrainingResult | None) -> None:
        """Measure the best weights and write everything down."""
        stored = read_checkpoint(folder.checkpoint, "best")
        now = fingerprint(prepared.model, prepared.corpus, prepared.config, self.world)
        check_written_by(stored.path, stored.fingerprint, now)
        restore_weights(prepared.model, stored)
        facts = measured(
            prepared, folder, result, step=stored.step, processes=self.world.size, phase=self.phase
        )
        facts["seconds"] = self.seconds
        write_json(folder.summary_json, as_plain(facts))
        write_whole(folder.summary_md, markdown(facts))
        write_whole(folder.samples_file, samples_text(facts))
        self.reporter.event(Summary(facts))


def _joined(config: RunConfig) -> World:
    return World.from_environment(resolve_device(config.device))


def _agree_on_folder(world: World, root: Path, name: str) -> RunFolder:
    """The main process makes the folder, the others learn its path."""
    encoded = b""
    if world.is_main:
        encoded = os.fsencode(new_folder(root, name, now=datetime.now()).path)
    length = torch.tensor([len(encoded)], device=world.device)
    world.broadcast([length])
    text = torch.zeros(int(length), dtype=torch.uint8, device=world.device)
    if world.is_main:
        text.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
    world.broadcast([text])
    return RunFolder(Path(os.fsdecode(bytes(text.tolist()))))


@contextlib.contextmanager
def one_group_of_writers(world: World, folder: Path) -> Iterator[None]:
    """Within: these processes, which train together, alone write into a run's folder (see `one_writer`)."""
    with contextlib.ExitStack() as stack:
        refused: DBAError | None = None
        if world.is_main:
            try:
                stack.enter_context(one_writer(folder / ".lock", folder=folder))
            except DBAError as error:
                refused = error
        told = torch.tensor([float(refused is not None)], device=world.device)
        world.broadcast([told])
        if refused is not None:
            raise refused
        if told.item():
            raise FolderInUseError(f"the main process could not take {folder}; its own message says why")
        yield
