"""A summary as text: sections of (name, value) rows, which the terminal table and `summary.md` both show."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from dba_core.runs.kv_memory import human_bytes
from dba_core.runs.summary import PluginFacts, Summary

Row = tuple[str, str]

#: What the plugin kinds are called on paper.
KIND_TITLES = {
    "summarizer": "Summarizer",
    "gate": "Gate",
    "null_token": "Null token",
    "decode_backend": "Decode backend",
}


@attrs.frozen
class Section:
    """A titled group of rows."""

    title: str
    rows: tuple[Row, ...]


def summary_sections(summary: Summary) -> list[Section]:
    """The whole summary, most asked for first."""
    return [
        Section("Model", tuple(_model_rows(summary))),
        Section("Plugins", tuple(_plugin_row(kind, plugin) for kind, plugin in summary.plugins.items())),
        Section("KV cache", tuple(_cache_rows(summary))),
        Section("Results", tuple(_result_rows(summary))),
        Section("Speed", tuple(_speed_rows(summary))),
        Section("Where", tuple(_environment_rows(summary))),
    ]


def markdown(summary: Summary) -> str:
    """`summary.md`."""
    lines = [f"# Run {summary.name}", "", f"Finished {summary.finished}."]
    for warning in summary.warnings:
        lines += ["", f"**Warning:** {warning}"]
    for section in summary_sections(summary):
        lines += ["", f"## {section.title}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in section.rows]
    lines += ["", "## Plots", ""]
    for name, value in summary.plots.items():
        shown = f"![{name}]({value})" if value.endswith(".png") else f"{name}: {value}"
        lines += [shown, ""]
    lines += ["## Sample", "", *_fenced(summary.sample.prompt + summary.sample.text)]
    commands = attrs.astuple(summary.commands)
    return "\n".join([*lines, "", "## Go on", "", *_fenced("\n".join(commands), "sh")]) + "\n"


def _model_rows(summary: Summary) -> Iterable[Row]:
    model, data = summary.model, summary.data
    yield (
        "Layout",
        (
            f"{model.layout}: {model.n_layers} layers, width {model.d_model}, {model.n_heads} heads "
            f"({model.n_kv_heads} key/value), per head {model.sem_head_dim} semantic + {model.geo_head_dim} geometric "
            f"+ {model.v_head_dim} value"
        ),
    )
    yield "Parameters", f"{model.cost.parameters:,}"
    yield "Context, vocabulary", f"{model.context} tokens, {model.vocab_size:,} ({data['tokenizer']})"
    yield (
        "FLOPs per token",
        (
            f"{human_count(model.cost.forward_flops_per_token)} forward, "
            f"{human_count(model.cost.training_flops_per_token)} training"
        ),
    )
    version = f" of {data['version']}" if data["version"] else ""
    yield (
        "Data",
        (
            f"{data['name']}{version}: {data['train_tokens']:,} tokens to train on, {data['held_out_tokens']:,} held out, "
            f"sha256 {data['sha256'][:12]}"
        ),
    )
    yield (
        "Training",
        (
            f"{summary.training.steps} steps of {summary.training.batch_size} sequences, {summary.training.tokens:,} tokens"
            + (f", {summary.training.processes} processes" if summary.training.processes > 1 else "")
        ),
    )
    yield "Long-sequence training", summary.long_sequence.text


def _plugin_row(kind: str, plugin: PluginFacts) -> Row:
    options = ", ".join(f"{name}={value}" for name, value in plugin.options.items())
    given = f" ({options})" if options else ""
    return KIND_TITLES[kind], f"{plugin.name}{given} of {plugin.distribution} {plugin.version}: {plugin.why}"


def _cache_rows(summary: Summary) -> Iterable[Row]:
    kv = summary.kv
    yield "KV Policy", kv.policy
    yield (
        "KV bytes per token",
        (
            f"{kv.bytes_per_token:,} ({kv.bytes_per_token_per_layer:,} a layer), standard fp16 "
            f"{kv.standard_bytes_per_token:,}"
        ),
    )
    yield (
        "KV cache at 128k",
        (
            f"{human_bytes(kv.bytes_long)}, {kv.ratio:.1f}x smaller than fp16 standard attention "
            f"({human_bytes(kv.standard_bytes_long)})"
        ),
    )
    yield "Null Attention", summary.null_attention


def _result_rows(summary: Summary) -> Iterable[Row]:
    losses, fidelity = summary.losses, summary.fidelity
    if losses.train is not None:
        yield "Training loss", f"{losses.train:.4f}"
    yield (
        "Held-out loss",
        (
            f"{losses.held_out:.4f} over {losses.held_out_tokens:,} tokens ({losses.checkpoint} weights, "
            f"step {losses.checkpoint_step})"
        ),
    )
    per_byte = f", {losses.bits_per_byte:.4f} bits per byte" if losses.bits_per_byte is not None else ""
    yield "Perplexity", f"{losses.perplexity:.3f}{per_byte}"
    if fidelity is None:
        yield "Fidelity of the KV policy", "not measured (evaluation.fidelity_tokens = 0)"
        return
    yield (
        "Fidelity of the KV policy",
        (
            f"delta_nll {fidelity.delta_nll:+.5f}, ppl_ratio {fidelity.ppl_ratio:.5f}, kl {fidelity.kl:.2e}, "
            f"max_abs_logit {fidelity.max_abs_logit:.3f} against an fp32 cache, {fidelity.tokens:,} tokens"
        ),
    )


def _speed_rows(summary: Summary) -> Iterable[Row]:
    speed = summary.speed
    if speed.training is not None:
        yield "Training", f"{speed.training:,.0f} tokens/s"
    yield "Prefill", f"{speed.prefill:,.0f} tokens/s ({speed.prefill_tokens} tokens, one sequence)"
    yield "Decode", f"{speed.decode:,.0f} tokens/s ({speed.decode_tokens} tokens, one sequence)"
    yield "Peak memory", human_bytes(speed.peak_memory_bytes)
    yield "Time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items())


def _environment_rows(summary: Summary) -> Iterable[Row]:
    where = summary.environment
    yield (
        "Device",
        f"{where.device} ({where.device_name}, {where.threads} threads), {where.dtype}, seed {where.seed}",
    )
    yield "Versions", ", ".join(f"{name} {version}" for name, version in where.versions.items())
    yield "Folder", summary.folder


def human_count(count: float) -> str:
    """1234567 -> "1.23M"."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str, language: str = "text") -> list[str]:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text, fence]
