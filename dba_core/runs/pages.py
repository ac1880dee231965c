"""What the terminal and `summary.md` show of a run, a dry run and an evaluation, in the same words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dba_core.evaluation.metrics import FidelityMetrics
from dba_core.free_memory import gib
from dba_core.kinds import KINDS, per_layer
from dba_core.registry.choice import in_words
from dba_core.report import Table, fenced, inline, markdown_table
from dba_core.runs.estimate import KvMemory, human_bytes, times_smaller
from dba_core.runs.outline import DryRun, Outline, PlacedChoice
from dba_core.runs.summary import LossFacts, Summary

if TYPE_CHECKING:
    from dba_core.runs.evaluate import RunEvaluation

Row = tuple[str, str]


def summary_tables(summary: Summary) -> list[Table]:
    """The whole summary."""
    training, speed, where = summary.training, summary.speed, summary.environment
    together = f", {training.processes} processes" if training.processes > 1 else ""
    sequences = (
        f"{training.steps} steps of {training.batch_size} sequences, {training.tokens:,} tokens{together}"
    )
    seconds = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items())
    speeds = (
        *([("Training", f"{speed.training:,.0f} tokens/s")] if speed.training is not None else []),
        ("Prefill", f"{speed.prefill:,.0f} tokens/s ({speed.prefill_tokens} tokens, one sequence)"),
        ("Decode", f"{speed.decode:,.0f} tokens/s ({speed.decode_tokens} tokens, one sequence)"),
        ("Peak memory", human_bytes(speed.peak_memory_bytes)),
        ("Time", seconds),
    )
    place = (
        (
            "Device",
            f"{where.device} ({where.device_name}, {where.threads} threads), {where.dtype}, "
            f"seed {where.seed}",
        ),
        ("Versions", ", ".join(f"{name} {version}" for name, version in where.versions.items())),
        ("Folder", summary.folder),
    )
    return [
        *_outline_tables(summary, sequences),
        Table.of_facts([*_loss_rows(summary.losses), _fidelity_row(summary.fidelity)], title="Results"),
        Table.of_facts(speeds, title="Speed"),
        Table.of_facts(place, title="Where"),
    ]


def dry_run_tables(result: DryRun) -> list[Table]:
    """What is known before training."""
    need = result.memory
    memory = (
        f"at least {gib(need.total)}: weights {gib(need.weights)}, gradients {gib(need.gradients)}, AdamW "
        f"{gib(need.optimizer)}, activations {gib(need.activations)}, logits {gib(need.logits)}"
    )
    if result.memory_free is not None:
        verdict = "" if need.total <= result.memory_free else "; it does not fit here"
        memory += f"; {gib(result.memory_free)} free on {result.device}{verdict}"
    training = (
        f"{result.steps} steps, {result.training_tokens:,} tokens, {human_count(result.training_flops)} FLOPs"
    )
    return _outline_tables(result, training, ("Device", result.device), ("Memory", memory))


def evaluation_tables(result: RunEvaluation) -> list[Table]:
    """What the evaluation of a run found."""
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
    attention = "exact" if result.long_sequence is None else result.long_sequence.text
    results = (
        ("Data", result.data["name"]),
        ("Attention", attention),
        *_loss_rows(losses),
        _fidelity_row(result.fidelity),
    )
    return [
        Table.of_facts(results, title="Results"),
        _cache_table(result.kv_policy, result.kv_memory, result.null_attention),
    ]


def markdown(summary: Summary) -> str:
    """`summary.md`: the tables of the summary, the pictures, the sample, what to do next."""
    lines = [f"# Run {inline(summary.name)}", "", f"Finished {summary.finished}."]
    for warning in summary.warnings:
        lines += ["", f"**Warning:** {inline(warning)}"]
    for part in summary_tables(summary):
        lines += ["", f"## {part.title}", "", *markdown_table(part.header, part.cells)]
    lines += ["", "## Plots", ""]
    for name, value in summary.plots.items():
        lines += [f"![{name}]({value})" if value.endswith(".png") else f"{name}: {inline(value)}", ""]
    lines += ["## Sample", "", *fenced(summary.sample.prompt + summary.sample.text, "text")]
    commands = (summary.commands.sample, summary.commands.evaluate, summary.commands.repeat)
    return "\n".join([*lines, "", "## Go on", "", *fenced("\n".join(commands), "sh")]) + "\n"


def _outline_tables(outline: Outline, training: str, *more: Row) -> list[Table]:
    """The model, its plugins and its cache."""
    model, data = outline.model, outline.data
    version = f" of {data['version']}" if data["version"] else ""
    rows = (
        (
            "Layout",
            f"{model.layout}: {model.n_layers} layers, width {model.d_model}, {model.n_heads} heads "
            f"({model.n_kv_heads} key/value), per head {model.sem_head_dim} semantic + "
            f"{model.geo_head_dim} geometric + {model.v_head_dim} value",
        ),
        ("Parameters", f"{model.cost.parameters:,}"),
        ("Context, vocabulary", f"{model.context} tokens, {model.vocab_size:,}"),
        (
            "FLOPs per token",
            f"{human_count(model.cost.forward_flops_per_token)} forward, "
            f"{human_count(model.cost.training_flops_per_token)} training",
        ),
        (
            "Data",
            f"{data['name']}{version}, tokenizer {data['tokenizer']}: {data['train_tokens']:,} tokens to "
            f"train on, {data['held_out_tokens']:,} held out, sha256 {data['sha256'][:12]}",
        ),
        ("Training", training),
        ("Long-sequence training", outline.long_sequence.text),
        *more,
    )
    return [
        Table.of_facts(rows, title="Model"),
        Table.of_facts(list(_plugin_rows(outline)), title="Plugins"),
        _cache_table(outline.kv_policy, outline.kv_memory, outline.null_attention),
    ]


def _plugin_rows(outline: Outline) -> Iterable[Row]:
    """Kind by kind; where single layers chose, every row of the kind names its layers."""
    for kind in per_layer():
        title = KINDS[kind].title
        own = [chosen[kind] for chosen in outline.layer_plugins.values() if kind in chosen]
        for plugin in [*([outline.plugins[kind]] if kind in outline.plugins else []), *own]:
            yield from _rows_of(f"{title}, {in_words(plugin.layers)}" if own else title, plugin)


def _rows_of(title: str, plugin: PlacedChoice) -> Iterable[Row]:
    options = ", ".join(f"{name}={value}" for name, value in plugin.options.items())
    given = f" ({options})" if options else ""
    origin = f"{plugin.name}{given} of {plugin.record.distribution} {plugin.record.version}"
    if plugin.not_built is not None:
        yield title, f"not built: {plugin.not_built} (else {origin}: {plugin.record.why})"
        return
    yield title, f"{origin}: {plugin.record.why}"
    for passed in plugin.passed_over:
        yield "", f"passed over {passed}"


def _cache_table(policy: str, kv: KvMemory, null_attention: str) -> Table:
    return Table.of_facts([*cache_rows(policy, kv), ("Null Attention", null_attention)], title="KV cache")


def cache_rows(policy: str, kv: KvMemory) -> Iterable[Row]:
    window = f" with {human_bytes(kv.residual_bytes)} of residual window" if kv.residual_bytes else ""
    yield "KV Policy", policy
    yield (
        "KV bytes per token",
        f"{kv.bytes_per_token:,} ({kv.bytes_per_token_per_layer:,} a layer); fp16 standard attention "
        f"{kv.standard_bytes_per_token:,}",
    )
    yield (
        f"KV cache at {kv.context} tokens",
        f"{human_bytes(kv.bytes_context)}{window}, "
        f"{times_smaller(kv.bytes_context, kv.standard_bytes_context)} fp16 standard attention "
        f"({human_bytes(kv.standard_bytes_context)}), "
        f"{times_smaller(kv.bytes_context, kv.fp16_bytes_context)} this layout in fp16 "
        f"({human_bytes(kv.fp16_bytes_context)})",
    )
    if kv.context < kv.long_context:
        yield (
            "For scale, at 128k",
            f"{human_bytes(kv.bytes_long)}, {times_smaller(kv.bytes_long, kv.standard_bytes_long)} fp16 "
            f"standard attention ({human_bytes(kv.standard_bytes_long)}): arithmetic, beyond this model's "
            "context",
        )


def _loss_rows(losses: LossFacts) -> Iterable[Row]:
    if losses.train is not None:
        yield "Training loss", f"{losses.train:.4f}"
    yield (
        "Held-out loss",
        f"{losses.held_out:.4f} over {losses.held_out_tokens:,} tokens ({losses.checkpoint} weights, "
        f"step {losses.checkpoint_step})",
    )
    if losses.held_out_as_trained is not None:
        yield "Held-out loss as trained", f"{losses.held_out_as_trained:.4f} with the long-sequence path"
    per_byte = f", {losses.bits_per_byte:.4f} bits per byte" if losses.bits_per_byte is not None else ""
    yield "Perplexity", f"{losses.perplexity:.3f}{per_byte}"


def _fidelity_row(fidelity: FidelityMetrics | None) -> Row:
    name = "Fidelity of the KV policy"
    if fidelity is None:
        return name, "not measured (evaluation.fidelity_tokens = 0)"
    return (
        name,
        f"delta_nll {fidelity.delta_nll:+.5f}, ppl_ratio {fidelity.ppl_ratio:.5f}, kl {fidelity.kl:.2e}, "
        f"max_abs_logit {fidelity.max_abs_logit:.3g} against an fp32 cache, {fidelity.tokens:,} tokens",
    )


def human_count(count: float) -> str:
    """1234567 -> "1.23M"."""
    if count < 1000:
        return f"{count:.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        count /= 1000
        if count < 999.5 or unit == "P":
            break
    return f"{count:.3g}{unit}"
