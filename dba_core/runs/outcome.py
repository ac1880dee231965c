"""From what a job measured to its summary. Called by the job when everything has been measured."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import torch

from dba_core.config.model import ModelConfig
from dba_core.distribution import installed_version
from dba_core.evaluation.held_out import HeldOut
from dba_core.evaluation.metrics import PolicyFidelity
from dba_core.evaluation.throughput import Throughput
from dba_core.runs.cost import Cost, model_cost
from dba_core.runs.device import device_name
from dba_core.runs.folder import RunFolder
from dba_core.runs.kv_memory import KvMemory, kv_memory
from dba_core.runs.prepare import Prepared
from dba_core.runs.selection import PlacedSelection
from dba_core.runs.summary import (
    Commands,
    Environment,
    FidelityFacts,
    LongSequenceFacts,
    LossFacts,
    ModelFacts,
    PluginFacts,
    SampleFacts,
    SpeedFacts,
    Summary,
    TrainingFacts,
)

#: The training loss of the summary is the mean over the logged steps of this last part of the run.
_LAST_PART = 0.05

#: Nats per token by which exact attention may be worse than the path without a warning.
_FAR_FROM_EXACT = 0.1


@attrs.frozen(kw_only=True)
class Measured:
    """Everything that a job measured, in the units of the summary; None where nothing was trained.

    held_out_as_trained: with the long-sequence path; None where training did not take it.
    """

    held_out: HeldOut
    held_out_as_trained: HeldOut | None
    checkpoint: str
    checkpoint_step: int
    last_step: int
    fidelity: PolicyFidelity | None
    throughput: Throughput
    training_rate: float | None
    peak_memory_bytes: int
    null_attention: str
    sample: SampleFacts
    plots: dict[str, str]
    seconds: dict[str, float]
    training_seconds: float
    processes: int


def summarize(
    prepared: Prepared, folder: RunFolder, measured: Measured, metrics: Sequence[Mapping[str, Any]]
) -> Summary:
    """The summary of a run. metrics: the lines of its metrics.jsonl."""
    config = prepared.config
    path = shlex.quote(str(folder.path))
    return Summary(
        name=config.name,
        folder=str(folder.path),
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
        model=model_facts(prepared),
        data=prepared.corpus.describe(),
        plugins=plugin_facts(prepared),
        layer_plugins=layer_plugin_facts(prepared),
        kv_policy=prepared.kv_policy.short,
        kv_memory=memory_facts(prepared),
        null_attention=measured.null_attention,
        long_sequence=long_sequence_facts(prepared),
        training=TrainingFacts(
            steps=measured.last_step,
            batch_size=config.training.batch_size,
            tokens=measured.last_step * config.training.batch_size * config.model.context,
            seconds=measured.training_seconds,
            processes=measured.processes,
        ),
        losses=_losses(measured, metrics),
        fidelity=_fidelity(measured.fidelity),
        speed=_speed(measured),
        sample=measured.sample,
        environment=_environment(prepared),
        seconds=measured.seconds,
        plots=measured.plots,
        warnings=(*prepared.warnings, *_deprecated(prepared), *_far_from_exact(measured)),
        commands=Commands(
            sample=f"dba sample {path} --prompt {shlex.quote('The ')}",
            evaluate=f"dba eval {path}",
            repeat=f"dba run --config {shlex.quote(str(folder.config_file))}",
        ),
    )


def model_facts(prepared: Prepared) -> ModelFacts:
    model = prepared.config.model
    shape = model.attention.shape
    assert model.d_ff is not None
    assert model.vocab_size is not None
    return ModelFacts(
        layout=model.attention.mode,
        cost=parameter_cost(prepared),
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_ff=model.d_ff,
        context=model.context,
        vocab_size=model.vocab_size,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        sem_head_dim=shape.sem_head_dim,
        geo_head_dim=shape.geo_head_dim,
        v_head_dim=shape.v_head_dim,
    )


def parameter_cost(prepared: Prepared) -> Cost:
    model = prepared.config.model
    return model_cost(
        ((name, tuple(parameter.shape)) for name, parameter in prepared.model.named_parameters()),
        shape=model.attention.shape,
        n_layers=model.n_layers,
        context=model.context,
        tied_embeddings=model.tie_embeddings,
    )


def memory_facts(prepared: Prepared) -> KvMemory:
    model = prepared.config.model
    shape, policy = model.attention.shape, prepared.kv_policy
    return kv_memory(shape, model.n_layers, policy, context=model.context)


def plugin_facts(prepared: Prepared) -> dict[str, PluginFacts]:
    """By kind: what the layers have that chose nothing of their own."""
    placed = prepared.selections.placed()
    return {each.selection.kind: _plugin(each, prepared) for each in placed if not each.text}


def layer_plugin_facts(prepared: Prepared) -> dict[str, dict[str, PluginFacts]]:
    """By layers and kind: what single layers chose."""
    facts: dict[str, dict[str, PluginFacts]] = {}
    for each in prepared.selections.placed():
        if each.text:
            facts.setdefault(each.where, {})[each.selection.kind] = _plugin(each, prepared)
    return facts


def _plugin(placed: PlacedSelection, prepared: Prepared) -> PluginFacts:
    choice = placed.selection.choice()
    assert choice.record is not None
    return PluginFacts(
        name=choice.name,
        distribution=choice.record.distribution,
        version=choice.record.version,
        contract=choice.record.contract,
        options=choice.options,
        why=choice.record.why,
        layers=placed.where,
        passed_over=tuple(map(str, placed.selection.passed_over)),
        not_built=_not_built(placed, prepared),
    )


def _not_built(placed: PlacedSelection, prepared: Prepared) -> str | None:
    """A summarizer is chosen for every model with a semantic path, and made where its path can be reached."""
    if placed.selection.kind != "summarizer":
        return None
    layers = prepared.model.attentions
    if any(layers[layer].summarizer is not None for layer in placed.layers):
        return None
    return _below_threshold(prepared.config.model)


def _below_threshold(model: ModelConfig) -> str:
    threshold = model.train_long_seq.threshold
    return f"the context of {model.context} is below the threshold of {threshold} tokens"


def _losses(measured: Measured, metrics: Sequence[Mapping[str, Any]]) -> LossFacts:
    start = measured.last_step * (1 - _LAST_PART)
    newest = [row["loss"] for row in metrics if row["kind"] == "train" and row["step"] >= start]
    as_trained = measured.held_out_as_trained
    return LossFacts(
        train=sum(newest) / len(newest) if newest else None,
        held_out=measured.held_out.loss,
        held_out_as_trained=None if as_trained is None else as_trained.loss,
        perplexity=measured.held_out.perplexity,
        bits_per_byte=measured.held_out.bits_per_byte,
        held_out_tokens=measured.held_out.tokens,
        checkpoint=measured.checkpoint,
        checkpoint_step=measured.checkpoint_step,
    )


def _deprecated(prepared: Prepared) -> dict[str, None]:
    """What is said about plugins of an older contract, each once."""
    chosen = (each.selection for each in prepared.selections.placed())
    return {f"{each.kind} {each.name!r}: {each.deprecation}": None for each in chosen if each.deprecation}


def _far_from_exact(measured: Measured) -> Iterator[str]:
    """That decoding, which is exact, does not read these weights as they were trained."""
    as_trained = measured.held_out_as_trained
    if as_trained is None or measured.held_out.loss - as_trained.loss <= _FAR_FROM_EXACT:
        return
    yield (
        f"exact attention, which decoding uses, loses {measured.held_out.loss - as_trained.loss:.2f} nats "
        "per token more than the long-sequence path that these weights were trained with; train more steps "
        "exactly with a smaller model.train_long_seq.exact_every"
    )


def _fidelity(fidelity: PolicyFidelity | None) -> FidelityFacts | None:
    if fidelity is None:
        return None
    return FidelityFacts(
        delta_nll=fidelity.delta_nll,
        ppl_ratio=fidelity.ppl_ratio,
        max_abs_logit=fidelity.max_abs_logit,
        kl=fidelity.kl,
        tokens=fidelity.tokens,
    )


def _speed(measured: Measured) -> SpeedFacts:
    return SpeedFacts(
        training=measured.training_rate,
        prefill=measured.throughput.prefill,
        decode=measured.throughput.decode,
        prefill_tokens=measured.throughput.context,
        decode_tokens=measured.throughput.decode_tokens,
        peak_memory_bytes=measured.peak_memory_bytes,
    )


def long_sequence_facts(prepared: Prepared) -> LongSequenceFacts:
    """What the long-sequence training path is set to, and whether training at this context takes it."""
    model = prepared.config.model
    attention = prepared.model.attentions[0]
    knobs = model.train_long_seq
    assert knobs.threshold is not None
    assert knobs.mem_block is not None
    assert knobs.local_window is not None
    assert knobs.q_chunk is not None
    active = attention.summarizer is not None
    if active:
        names = prepared.selections.names("summarizer")
        text = (
            f"active from {knobs.threshold} tokens on: mem_block {knobs.mem_block}, local_window "
            f"{knobs.local_window}, q_chunk {knobs.q_chunk}, summarizer {names}, mass "
            f"correction {'on' if knobs.mass_correction else 'off'}, {_exact_steps(knobs.exact_every)}"
        )
    elif not knobs.enabled:
        text = "off (model.train_long_seq.enabled = false)"
    elif attention.long_sequence is None:
        text = f"inactive: layout {model.attention.mode!r} has no semantic path"
    else:
        text = f"inactive: {_below_threshold(model)}"
    return LongSequenceFacts(
        text=text,
        enabled=knobs.enabled,
        active=active,
        threshold=knobs.threshold,
        mem_block=knobs.mem_block,
        local_window=knobs.local_window,
        q_chunk=knobs.q_chunk,
        mem_summarizer=knobs.mem_summarizer,
        mass_correction=knobs.mass_correction,
        exact_every=knobs.exact_every,
    )


def _exact_steps(every: int) -> str:
    return f"one step in {every} exact" if every else "no exact steps"


def _environment(prepared: Prepared) -> Environment:
    device = prepared.model.device
    return Environment(
        device=str(device),
        device_name=device_name(device),
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
