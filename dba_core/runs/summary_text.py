"""Sections of rows for the terminal: of a summary, a dry run, an evaluation."""

from __future__ import annotations

import attrs

from dba_core.runs.dry_run import DryRun
from dba_core.runs.evaluate import RunEvaluation
from dba_core.runs.rows import (
    Row,
    cache_rows,
    data_row,
    environment_rows,
    fidelity_row,
    human_count,
    loss_rows,
    memory_row,
    model_rows,
    plugin_rows,
    speed_rows,
)
from dba_core.runs.summary import LossFacts, Summary


@attrs.frozen
class Section:
    """A titled group of rows."""

    title: str
    rows: tuple[Row, ...]


def summary_sections(summary: Summary) -> list[Section]:
    """The whole summary."""
    training = summary.training
    together = f", {training.processes} processes" if training.processes > 1 else ""
    model = (
        *model_rows(summary.model),
        data_row(summary.data),
        (
            "Training",
            f"{training.steps} steps of {training.batch_size} sequences, {training.tokens:,} tokens"
            f"{together}",
        ),
        ("Long-sequence training", summary.long_sequence.text),
    )
    cache = (*cache_rows(summary.kv_policy, summary.kv_memory), ("Null Attention", summary.null_attention))
    seconds = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items())
    return [
        Section("Model", model),
        Section("Plugins", tuple(plugin_rows(summary.plugins, summary.layer_plugins))),
        Section("KV cache", cache),
        Section("Results", (*loss_rows(summary.losses), fidelity_row(summary.fidelity))),
        Section("Speed", (*speed_rows(summary.speed), ("Time", seconds))),
        Section("Where", (*environment_rows(summary.environment), ("Folder", summary.folder))),
    ]


def dry_run_sections(result: DryRun) -> list[Section]:
    """What is known before training."""
    training = (
        f"{result.steps} steps, {result.training_tokens:,} tokens, {human_count(result.training_flops)} FLOPs"
    )
    cache = (*cache_rows(result.kv_policy, result.kv_memory), ("Null Attention", result.null_attention))
    model = (
        *model_rows(result.model),
        data_row(result.data),
        ("Training", training),
        ("Long-sequence training", result.long_sequence.text),
        ("Device", result.device),
        memory_row(result.memory, result.memory_free, result.device),
    )
    return [
        Section("Model", model),
        Section("Plugins", tuple(plugin_rows(result.plugins, result.layer_plugins))),
        Section("KV cache", cache),
    ]


def evaluation_sections(result: RunEvaluation) -> list[Section]:
    """What `dba eval` found."""
    held_out = result.held_out
    losses = LossFacts(
        train=None,
        held_out=held_out.loss,
        held_out_as_trained=None,
        perplexity=held_out.perplexity,
        bits_per_byte=held_out.bits_per_byte,
        held_out_tokens=held_out.tokens,
        checkpoint=result.checkpoint,
        checkpoint_step=result.checkpoint_step,
    )
    cache = (*cache_rows(result.kv_policy, result.kv_memory), ("Null Attention", result.null_attention))
    attention = "exact" if result.long_sequence is None else result.long_sequence.text
    results = (
        ("Data", result.data["name"]),
        ("Attention", attention),
        *loss_rows(losses),
        fidelity_row(result.fidelity),
    )
    return [Section("Results", results), Section("KV cache", cache)]
