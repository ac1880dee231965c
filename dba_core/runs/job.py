"""The main job, `dba run`: configuration -> plugins -> data -> model -> training -> evaluation -> folder.

Under torchrun every process trains; the main one alone writes, evaluates and reports. A run that fails or is
interrupted leaves its folder with what there is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import attrs
import torch

from dba_core.config.loading import LoadedConfig
from dba_core.config.run import RunConfig
from dba_core.documents import write_json, write_whole
from dba_core.errors import DBAError
from dba_core.evaluation.throughput import measure_throughput
from dba_core.free_memory import peak_memory_bytes
from dba_core.registry import Registry
from dba_core.runs.device import resolve_device
from dba_core.runs.evaluate import (
    evaluate_fidelity,
    evaluate_loss,
    evaluate_loss_as_trained,
    null_attention,
)
from dba_core.runs.folder import (
    DEFAULT_ROOT,
    RunFolder,
    disk_errors,
    new_folder,
    read_resolved,
)
from dba_core.runs.lock import one_group_of_writers
from dba_core.runs.outcome import Measured, summarize
from dba_core.runs.pictures import draw_plots
from dba_core.runs.prepare import Prepared, prepare
from dba_core.runs.report import Reporter, SilentReporter
from dba_core.runs.sample import sample_run, samples_text
from dba_core.runs.summary_markdown import markdown
from dba_core.training.checkpoint import has_checkpoint, read_checkpoint, restore_weights
from dba_core.training.distributed import World
from dba_core.training.fingerprint import check_written_by, fingerprint
from dba_core.training.loop import TrainingResult, train
from dba_core.training.metrics_log import read_metrics

#: Longest prompt of the speed measurement.
_SPEED_CONTEXT = 512


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
    """Do a new run and return its folder, `root/<time>-<name>`. See `dba_core.errors` for what it raises."""
    config = loaded.config
    with _joined(config) as world:
        job = _Job(world, registry, reporter)
        with job.phase("prepare", "Reading the data and building the model ..."):
            prepared = job.prepare(config, allow_drift=allow_drift, strict=strict)
        folder = _agree_on_folder(world, root, config.name)
        with one_group_of_writers(world, folder.path):
            if world.is_main:
                with disk_errors(folder.path, "Make room or give --out another place, then start again"):
                    write_json(folder.config_file, prepared.config.to_dict())
            return job.train_and_evaluate(prepared, folder, resume=False)


def resume_job(
    folder: RunFolder,
    *,
    device: str | None = None,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
    allow_drift: bool = False,
    strict: bool = False,
) -> Path:
    """Go on with a run in its own folder, from its last checkpoint, with the configuration that it recorded.

    A run whose training is complete is evaluated again, one without a checkpoint starts from its first step.
    device: another than the recorded one. Raises FolderInUseError where another process writes there.
    """
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

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Announce a phase and record its seconds."""
        self.reporter.phase(text)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def prepare(self, config: RunConfig, *, allow_drift: bool, strict: bool) -> Prepared:
        settled = attrs.evolve(config, device=resolve_device(config.device))
        device = str(self.world.device)
        prepared = prepare(
            settled,
            self.registry,
            device=device,
            allow_drift=allow_drift,
            strict=strict,
            processes=self.world.size,
        )
        for warning in prepared.warnings:
            self.reporter.warning(warning)
        return prepared

    def train_and_evaluate(self, prepared: Prepared, folder: RunFolder, *, resume: bool) -> Path:
        """Everything after the folder is there."""
        with _WhatIsLeft(folder, self.reporter):
            resume = resume and self._can_go_on(folder)
            result = self._train(prepared, folder, resume=resume)
            if self.world.is_main:
                with disk_errors(folder.path, "Make room, or put the folder back and make it writable"):
                    self._evaluate(prepared, folder, result)
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
        if resume and _is_trained(folder, config):
            self.reporter.note("The training is complete; evaluating.")
            return None
        with self.phase(
            "train", f"Training {config.name} for {config.training.steps} steps into {folder.path} ..."
        ):
            result = train(
                prepared.model,
                prepared.corpus,
                config,
                checkpoint_dir=folder.checkpoint,
                metrics_path=folder.metrics_file,
                resume=resume,
                world=self.world,
                on_event=self.reporter.training,
            )
        if result.interrupted:
            raise RunInterruptedError(
                f"Interrupted after step {result.last_step} of {config.training.steps}; the checkpoint is "
                f"saved. Go on with: dba run --resume {folder.path}"
            )
        return result

    def _evaluate(self, prepared: Prepared, folder: RunFolder, result: TrainingResult | None) -> None:
        """Measure the best weights and write everything down."""
        config, model, corpus = prepared.config, prepared.model, prepared.corpus
        stored = read_checkpoint(folder.checkpoint, "best")
        check_written_by(stored.path, stored.fingerprint, fingerprint(model, corpus, config, self.world))
        restore_weights(model, stored)
        step = stored.step
        with self.phase("evaluate", f"Evaluating the best weights (step {step}) on held-out text ..."):
            held_out = evaluate_loss(model, corpus.held_out, corpus.byte_counter, config)
            as_trained = evaluate_loss_as_trained(model, corpus.held_out, corpus.byte_counter, config)
        with self.phase(
            "fidelity", f"Comparing the KV policy {prepared.kv_policy.short} with an fp32 cache ..."
        ):
            fidelity = evaluate_fidelity(model, corpus.held_out, prepared.kv_policy, config)
        with self.phase("speed", "Measuring prefill and decode ..."):
            context = min(config.model.context, _SPEED_CONTEXT)
            throughput = measure_throughput(model, batch=1, context=context, policy=prepared.kv_policy)
        with self.phase("sample", "Sampling ..."):
            sample = sample_run(prepared)
        metrics = read_metrics(folder.metrics_file)
        with self.phase("plots", "Drawing ..."):
            drawn = draw_plots(prepared, folder, metrics)
        peak = result.peak_memory_bytes if result is not None else peak_memory_bytes(self.world.device)
        measured = Measured(
            held_out=held_out,
            held_out_as_trained=as_trained,
            checkpoint="best",
            checkpoint_step=step,
            last_step=config.training.steps,
            fidelity=fidelity,
            throughput=throughput,
            training_rate=result.tokens_per_second
            if result is not None and result.tokens_per_second
            else None,
            peak_memory_bytes=peak,
            null_attention=null_attention(model, prepared.selections.decode_backends),
            sample=sample,
            plots=drawn,
            seconds=self.seconds,
            training_seconds=result.seconds if result is not None else 0.0,
            processes=self.world.size,
        )
        summary = summarize(prepared, folder, measured, metrics)
        write_json(folder.summary_json, summary.to_dict())
        write_whole(folder.summary_md, markdown(summary))
        write_whole(folder.samples_file, samples_text(sample, policy=prepared.kv_policy.short))
        self.reporter.finished(summary)


class _WhatIsLeft:
    """When the run ends early, says where what there is lies and how to go on."""

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, RunInterruptedError):
            return
        text = f"The run did not finish; what there is lies in {self._folder.path}."
        if not has_checkpoint(self._folder.checkpoint, "last"):
            text += " No checkpoint was saved yet: it starts again from its first step."
        self._reporter.warning(f"{text} Go on with: dba run --resume {self._folder.path}")


def _joined(config: RunConfig) -> World:
    return World.from_environment(resolve_device(config.device))


def _is_trained(folder: RunFolder, config: RunConfig) -> bool:
    """Whether the last checkpoint is that of the last step."""
    if not has_checkpoint(folder.checkpoint, "last"):
        return False
    return read_checkpoint(folder.checkpoint, "last").step >= config.training.steps


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
