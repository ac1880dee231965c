"""Facts as rows of (name, value): what the terminal tables and `summary.md` show, in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dba_core.free_memory import gib
from dba_core.kinds import KINDS, per_layer
from dba_core.registry.choice import in_words
from dba_core.runs.kv_memory import KvMemory, human_bytes, times_smaller
from dba_core.runs.summary import Environment, FidelityFacts, LossFacts, ModelFacts, PluginFacts, SpeedFacts

if TYPE_CHECKING:
    from dba_core.evaluation.metrics import FidelityMetrics
    from dba_core.runs.memory_need import MemoryNeed

Row = tuple[str, str]


def model_rows(model: ModelFacts) -> Iterable[Row]:
    yield (
        "Layout",
        f"{model.layout}: {model.n_layers} layers, width {model.d_model}, {model.n_heads} heads "
        f"({model.n_kv_heads} key/value), per head {model.sem_head_dim} semantic + "
        f"{model.geo_head_dim} geometric + {model.v_head_dim} value",
    )
    yield "Parameters", f"{model.cost.parameters:,}"
    yield "Context, vocabulary", f"{model.context} tokens, {model.vocab_size:,}"
    yield (
        "FLOPs per token",
        f"{human_count(model.cost.forward_flops_per_token)} forward, "
        f"{human_count(model.cost.training_flops_per_token)} training",
    )


def memory_row(need: MemoryNeed, free: int | None, device: str) -> Row:
    """What training needs at least, and whether that is there."""
    parts = (
        f"at least {gib(need.total)}: weights {gib(need.weights)}, gradients {gib(need.gradients)}, AdamW "
        f"{gib(need.optimizer)}, activations {gib(need.activations)}, logits {gib(need.logits)}"
    )
    if free is None:
        return "Memory", parts
    verdict = "" if need.total <= free else "; it does not fit here"
    return "Memory", f"{parts}; {gib(free)} free on {device}{verdict}"


def data_row(data: Mapping[str, Any]) -> Row:
    version = f" of {data['version']}" if data["version"] else ""
    return (
        "Data",
        f"{data['name']}{version}, tokenizer {data['tokenizer']}: {data['train_tokens']:,} tokens to train "
        f"on, {data['held_out_tokens']:,} held out, sha256 {data['sha256'][:12]}",
    )


def plugin_rows(
    plugins: Mapping[str, PluginFacts], layer_plugins: Mapping[str, Mapping[str, PluginFacts]]
) -> Iterable[Row]:
    """Kind by kind; where single layers chose, every row of the kind names its layers."""
    for kind in per_layer():
        title = KINDS[kind].title
        own = [chosen[kind] for chosen in layer_plugins.values() if kind in chosen]
        for plugin in [*([plugins[kind]] if kind in plugins else []), *own]:
            yield from _plugin_rows(f"{title}, {in_words(plugin.layers)}" if own else title, plugin)


def _plugin_rows(title: str, plugin: PluginFacts) -> Iterable[Row]:
    options = ", ".join(f"{name}={value}" for name, value in plugin.options.items())
    given = f" ({options})" if options else ""
    origin = f"{plugin.name}{given} of {plugin.distribution} {plugin.version}"
    if plugin.not_built is not None:
        yield title, f"not built: {plugin.not_built} (else {origin}: {plugin.why})"
        return
    yield title, f"{origin}: {plugin.why}"
    for passed in plugin.passed_over:
        yield "", f"passed over {passed}"


def cache_rows(policy: str, kv: KvMemory) -> Iterable[Row]:
    yield "KV Policy", policy
    yield (
        "KV bytes per token",
        f"{kv.bytes_per_token:,} ({kv.bytes_per_token_per_layer:,} a layer); fp16 standard attention "
        f"{kv.standard_bytes_per_token:,}",
    )
    yield (
        f"KV cache at {kv.context} tokens",
        f"{human_bytes(kv.bytes_context)}{_window(kv)}, "
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


def _window(kv: KvMemory) -> str:
    return f" with {human_bytes(kv.residual_bytes)} of residual window" if kv.residual_bytes else ""


def loss_rows(losses: LossFacts) -> Iterable[Row]:
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


def fidelity_row(fidelity: FidelityFacts | FidelityMetrics | None) -> Row:
    name = "Fidelity of the KV policy"
    if fidelity is None:
        return name, "not measured (evaluation.fidelity_tokens = 0)"
    return (
        name,
        f"delta_nll {fidelity.delta_nll:+.5f}, ppl_ratio {fidelity.ppl_ratio:.5f}, kl {fidelity.kl:.2e}, "
        f"max_abs_logit {fidelity.max_abs_logit:.3g} against an fp32 cache, {fidelity.tokens:,} tokens",
    )


def speed_rows(speed: SpeedFacts) -> Iterable[Row]:
    if speed.training is not None:
        yield "Training", f"{speed.training:,.0f} tokens/s"
    yield "Prefill", f"{speed.prefill:,.0f} tokens/s ({speed.prefill_tokens} tokens, one sequence)"
    yield "Decode", f"{speed.decode:,.0f} tokens/s ({speed.decode_tokens} tokens, one sequence)"
    yield "Peak memory", human_bytes(speed.peak_memory_bytes)


def environment_rows(where: Environment) -> Iterable[Row]:
    yield (
        "Device",
        f"{where.device} ({where.device_name}, {where.threads} threads), {where.dtype}, seed {where.seed}",
    )
    yield "Versions", ", ".join(f"{name} {version}" for name, version in where.versions.items())


def human_count(count: float) -> str:
    """1234567 -> "1.23M"."""
    if count < 1000:
        return f"{count:.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        count /= 1000
        if count < 999.5 or unit == "P":
            break
    return f"{count:.3g}{unit}"
