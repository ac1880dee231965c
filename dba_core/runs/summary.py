"""What a run says about itself, as plain data: before it trains (`dry_run`) and at its end (`summary.json`).

`docs/reference/summary.md` says what every field means. Sizes are bytes, times seconds, losses nats per
token; what was not measured is None.
"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import attrs
import torch

from dba_core.config.loading import LoadedConfig
from dba_core.distribution import installed_version
from dba_core.evaluation.metrics import FidelityMetrics, measure_throughput
from dba_core.free_memory import free_bytes, peak_memory_bytes
from dba_core.registry import Registry
from dba_core.runs.estimate import kv_memory, model_cost, training_need
from dba_core.runs.evaluate import (
    SCHEMA,
    evaluate_fidelity,
    evaluate_loss,
    evaluate_loss_as_trained,
    null_attention,
)
from dba_core.runs.folder import RunFolder
from dba_core.runs.load import continue_prompts
from dba_core.runs.prepare import Prepared, below_threshold, prepare, resolve_device
from dba_core.training.loop import TrainingResult
from dba_core.training.metrics_log import read_metrics

Facts = dict[str, Any]

_FIGURES = tuple(field.name for field in attrs.fields(FidelityMetrics))

#: The training loss of the summary is the mean over the logged steps of this last part of the run.
_LAST_PART = 0.05
#: Nats per token by which exact attention may be worse than the path without a warning.
_FAR_FROM_EXACT = 0.1
#: Longest prompt of the speed measurement.
_SPEED_CONTEXT = 512
#: Tokens of the held-out text that stand in for a prompt.
_PROMPT_TOKENS = 64


@attrs.frozen
class Summary:
    """What a job tells last: the facts of `summary.json`."""

    facts: Facts


def outline(prepared: Prepared) -> Facts:
    """What is known of a prepared run: its model, data, plugins and cache."""
    model, policy = prepared.model.config, prepared.kv_policy
    shape, context = model.attention.shape, model.context
    plugins: Facts = {}
    layer_plugins: dict[str, Facts] = {}
    for each in prepared.placed:
        place = layer_plugins.setdefault(each.where, {}) if each.text else plugins
        place[each.selection.kind] = each.to_dict()
    cost = model_cost(
        ((name, tuple(parameter.shape)) for name, parameter in prepared.model.named_parameters()),
        shape=shape,
        n_layers=model.n_layers,
        context=context,
        tied_embeddings=model.tie_embeddings,
    )
    return {
        "name": prepared.config.name,
        "model": {
            "layout": model.attention.mode,
            "cost": cost,
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "d_ff": model.d_ff,
            "context": context,
            "vocab_size": model.vocab_size,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
            "sem_head_dim": shape.sem_head_dim,
            "geo_head_dim": shape.geo_head_dim,
            "v_head_dim": shape.v_head_dim,
        },
        "data": prepared.corpus.describe(),
        "plugins": plugins,
        "layer_plugins": layer_plugins,
        "kv_policy": policy.short,
        "kv_memory": kv_memory(shape, model.n_layers, policy, context=context),
        "null_attention": null_attention(prepared.model, policy, device=prepared.config.device),
        "long_sequence": _long_sequence(prepared),
        "warnings": list(prepared.warnings),
    }


def _long_sequence(prepared: Prepared) -> Facts:
    """What the long-sequence training path is set to, and whether training at this context takes it."""
    model = prepared.model.config
    attention = prepared.model.attentions[0]
    chosen = prepared.config.plugins.summarizer.name
    knobs = model.train_long_seq.resolved(context=model.context, device=prepared.config.device)
    active = attention.summarizer is not None
    if active:
        exact = f"one step in {knobs.exact_every} exact" if knobs.exact_every else "no exact steps"
        text = (
            f"active from {knobs.threshold} tokens on: mem_block {knobs.mem_block}, local_window "
            f"{knobs.local_window}, q_chunk {knobs.q_chunk}, summarizer {prepared.names('summarizer')}, "
            f"mass correction {'on' if knobs.mass_correction else 'off'}, {exact}"
        )
    elif not knobs.enabled:
        text = "off (model.train_long_seq.enabled = false)"
    elif attention.long_sequence is None:
        text = f"inactive: layout {model.attention.mode!r} has no semantic path"
    else:
        text = f"inactive: {below_threshold(model)}"
    summarizer = None if chosen == "auto" else chosen
    return {"text": text, "active": active, "mem_summarizer": summarizer, **attrs.asdict(knobs)}


def dry_run(
    loaded: LoadedConfig,
    *,
    registry: Registry | None = None,
    allow_drift: bool = False,
    strict: bool = False,
) -> Facts:
    """Prepare the run as `run_job` does and describe it: its outline, and what its training would take.

    memory: what training needs at least; memory_free: bytes of the device, None where they are not known.
    Raises what the run would raise before it trains, but for memory: what would not fit is described.
    """
    config = attrs.evolve(loaded.config, device=resolve_device(loaded.config.device))
    prepared = prepare(
        config,
        Registry.default() if registry is None else registry,
        device=config.device,
        allow_drift=allow_drift,
        strict=strict,
        shapes_only=True,
    )
    facts = outline(prepared)
    cost = facts["model"]["cost"]
    tokens = config.training.steps * config.training.batch_size * config.model.context
    return {
        **facts,
        "device": config.device,
        "steps": config.training.steps,
        "training_tokens": tokens,
        "training_flops": tokens * cost["training_flops_per_token"],
        "memory": training_need(prepared.config, parameters=cost["parameters"]),
        "memory_free": free_bytes(config.device),
    }


def measured(
    prepared: Prepared,
    folder: RunFolder,
    result: TrainingResult | None,
    *,
    step: int,
    processes: int,
    phase: Callable[[str, str], AbstractContextManager[None]],
) -> Facts:
    """Measure the prepared model, which has the weights of `step`, draw the pictures, and say everything.

    result: None where an earlier part of the run finished the training.
    """
    from dba_core.runs.plots import draw_plots  # matplotlib

    config, model, policy = prepared.config, prepared.model, prepared.kv_policy
    corpus, training = prepared.corpus, prepared.config.training
    metrics = read_metrics(folder.metrics_file)
    with phase("evaluate", f"Evaluating the best weights (step {step}) on held-out text ..."):
        held_out = evaluate_loss(model, corpus.held_out, corpus.byte_counter, config)
        as_trained = evaluate_loss_as_trained(model, corpus.held_out, corpus.byte_counter, config)
    with phase("fidelity", f"Comparing the KV policy {policy.short} with an fp32 cache ..."):
        fidelity = evaluate_fidelity(model, corpus.held_out, policy, config)
    with phase("speed", "Measuring prefill and decode ..."):
        speed = measure_throughput(
            model, batch=1, context=min(config.model.context, _SPEED_CONTEXT), policy=policy
        )
    with phase("sample", "Sampling ..."):
        sample = _sample(prepared)
    with phase("plots", "Drawing ..."):
        plots = draw_plots(prepared, folder, metrics)
    losses: Facts = {
        "train": _late_loss(metrics, training.steps),
        "held_out": held_out.loss,
        "held_out_as_trained": None if as_trained is None else as_trained.loss,
        "perplexity": held_out.perplexity,
        "bits_per_byte": held_out.bits_per_byte,
        "held_out_tokens": held_out.tokens,
        "checkpoint": "best",
        "checkpoint_step": step,
    }
    facts = outline(prepared)
    return {
        "schema": SCHEMA,
        **facts,
        "warnings": [*facts["warnings"], *_old_plugins(prepared), *far_from_exact(losses)],
        "folder": str(folder.path),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "training": {
            "steps": training.steps,
            "batch_size": training.batch_size,
            "tokens": training.steps * training.batch_size * config.model.context,
            "seconds": 0.0 if result is None else result.seconds,
            "processes": processes,
        },
        "losses": losses,
        "fidelity": fidelity and attrs.asdict(fidelity, filter=attrs.filters.include(*_FIGURES)),
        "speed": {
            "training": None if result is None else result.tokens_per_second or None,
            **attrs.asdict(speed),
            "peak_memory_bytes": peak_memory_bytes(model.device)
            if result is None
            else result.peak_memory_bytes,
        },
        "sample": sample,
        "environment": _environment(prepared),
        "plots": plots,
        "commands": _commands(folder),
    }


def _environment(prepared: Prepared) -> Facts:
    """Where the run ran."""
    device = prepared.model.device
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "dtype": prepared.config.dtype,
        "seed": prepared.config.seed,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {
            "dba": installed_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _commands(folder: RunFolder) -> Facts:
    """What to do next, ready to paste."""
    path = shlex.quote(str(folder.path))
    return {
        "sample": f"dba sample {path} --prompt {shlex.quote('The ')}",
        "evaluate": f"dba eval {path}",
        "repeat": f"dba run --config {shlex.quote(str(folder.config_file))}",
    }


def _late_loss(metrics: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """The mean over the logged steps of the last part of the training."""
    late = [row for row in metrics if row["kind"] == "train" and row["step"] >= steps * (1 - _LAST_PART)]
    return sum(row["loss"] for row in late) / len(late) if late else None


def _sample(prepared: Prepared) -> Facts:
    """From the configured prompt or the held-out text's beginning, under the run's KV policy and settings."""
    config, tokenizer = prepared.config, prepared.corpus.tokenizer
    generation = config.generation
    if generation.prompt is not None:
        prompt = tokenizer.encode(generation.prompt).tolist()
    else:
        prompt = prepared.corpus.held_out[: min(_PROMPT_TOKENS, config.model.context)].tolist()
    (made,) = continue_prompts(
        prepared.model, tokenizer, [prompt], generation, kv_policy=prepared.kv_policy, seed=config.seed
    )
    return {
        "prompt": tokenizer.decode(prompt),
        "text": made.text,
        "temperature": generation.temperature,
        "seed": generation.seed,
    }


def _old_plugins(prepared: Prepared) -> dict[str, None]:
    """Warnings of plugins that were written for an older contract, each once."""
    chosen = (each.selection for each in prepared.placed)
    return {f"{each.kind} {each.name!r}: {each.deprecation}": None for each in chosen if each.deprecation}


def far_from_exact(losses: Facts) -> Iterator[str]:
    """That exact attention, which decoding uses, reads weights worse than the path that trained them."""
    as_trained = losses["held_out_as_trained"]
    if as_trained is not None and losses["held_out"] - as_trained > _FAR_FROM_EXACT:
        yield (
            f"exact attention, which decoding uses, loses {losses['held_out'] - as_trained:.2f} nats "
            "per token more than the long-sequence path that these weights were trained with; train more "
            "steps exactly with a smaller model.train_long_seq.exact_every"
        )
