"""A run small enough for a test: a corpus in memory, a model of a few thousand numbers, a folder for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np

from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig, TrainingConfig
from dba_core.data.corpus import Corpus
from dba_core.data.tokenizers import load_tokenizer
from dba_core.model.language_model import LanguageModel
from dba_core.report import SilentReporter
from dba_core.training.checkpoint import StoredCheckpoint, read_checkpoint, restore_weights
from dba_core.training.distributed import World
from dba_core.training.loop import TrainingResult, train

TEXT = "".join(f"line {n}: {n * n} is the square of {n}.\n" for n in range(400)).encode()


def tiny_corpus(text: bytes = TEXT) -> Corpus:
    tokens = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    return Corpus(
        name="squares",
        tokens=tokens,
        n_train=len(tokens) * 9 // 10,
        tokenizer=load_tokenizer("bytes"),
        documents={},
        n_bytes=len(text),
        sha256=hashlib.sha256(text).hexdigest(),
    )


def tiny_config(**training: object) -> RunConfig:
    """Two layers of decoupled attention with dropout; `training` replaces fields of TrainingConfig."""
    settings = {
        "steps": 20,
        "batch_size": 4,
        "grad_accum": 2,
        "warmup_steps": 3,
        "lr": 1e-2,
        "eval_every": 5,
        "eval_tokens": 100,
        "log_every": 2,
    }
    return RunConfig(
        device="cpu",
        model=ModelConfig(
            vocab_size=256,
            context=16,
            n_layers=2,
            d_model=16,
            d_ff=24,
            dropout=0.1,
            attention=AttentionConfig(n_heads=2, sem_head_dim=4, geo_head_dim=4, v_head_dim=8, dropout=0.1),
        ),
        training=TrainingConfig(**{**settings, **training}),
    )


def without_dropout(config: RunConfig) -> RunConfig:
    attention = attrs.evolve(config.model.attention, dropout=0.0)
    return attrs.evolve(config, model=attrs.evolve(config.model, dropout=0.0, attention=attention))


def build(config: RunConfig) -> LanguageModel:
    return LanguageModel(config.model, plugins=config.plugins, seed=config.seed)


@attrs.frozen(kw_only=True)
class Trained:
    model: LanguageModel
    result: TrainingResult
    events: list[object]


class Listener(SilentReporter):
    """Hears the events of training."""

    def __init__(self, hear: Callable[[object], None]) -> None:
        self._hear = hear

    def event(self, event: object) -> None:
        self._hear(event)


def run(
    folder: Path,
    config: RunConfig,
    *,
    resume: bool = False,
    world: World | None = None,
    corpus: Corpus | None = None,
    model: LanguageModel | None = None,
    on_event: Callable[[object], None] | None = None,
) -> Trained:
    """Train a new model in `folder` and keep every event."""
    events: list[object] = []

    def listen(event: object) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    model = build(config) if model is None else model
    result = train(
        model,
        tiny_corpus() if corpus is None else corpus,
        config,
        checkpoint_dir=folder / "checkpoint",
        metrics_path=folder / "metrics.jsonl",
        resume=resume,
        world=world,
        reporter=Listener(listen),
    )
    return Trained(model=model, result=result, events=events)


def load_weights(model: LanguageModel, root: Path, which: str = "best") -> StoredCheckpoint:
    """The weights of a checkpoint put into the model."""
    stored = read_checkpoint(root, which)
    restore_weights(model, stored)
    return stored


def events_of(trained: Trained, kind: type) -> list:
    return [event for event in trained.events if isinstance(event, kind)]
