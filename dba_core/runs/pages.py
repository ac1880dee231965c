"""What `summary.md` and the terminal show of a run, before and after it, in the same words.

Made of the plain data of `summary.py`: the facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dba_core.kinds import KINDS, per_layer
from dba_core.registry.choice import in_words
from dba_core.report import Table, fenced, inline, markdown_table

Row = tuple[str, str]
Facts = Mapping[str, Any]


def summary_tables(summary: Facts) -> list[Table]:
    """The whole summary."""
    training, speed, where = summary["training"], summary["speed"], summary["environment"]
    together = f", {training['processes']} processes" if training["processes"] > 1 else ""
    sequences = "{steps} steps of {batch_size} sequences, {tokens:,} tokens".format(**training) + together
    speeds = []
    for name in ("training", "prefill", "decode"):
        if speed[name] is not None:
            of = "" if name == "training" else f" ({speed[f'{name}_tokens']} tokens, one sequence)"
            speeds.append((name.title(), f"{speed[name]:,.0f} tokens/s{of}"))
    seconds = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["seconds"].items())
    place = (
        ("Device", "{device} ({device_name}, {threads} threads), {dtype}, seed {seed}".format(**where)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in where["versions"].items())),
        ("Folder", summary["folder"]),
    )
    memory = ("Peak memory", human_bytes(speed["peak_memory_bytes"]))
    results = [*loss_rows(summary["losses"]), fidelity_row(summary["fidelity"])]
    return [
        *outline_tables(summary, sequences),
        Table.of_facts(results, title="Results"),
        Table.of_facts([*speeds, memory, ("Time", seconds)], title="Speed"),
        Table.of_facts(place, title="Where"),
    ]


def markdown(summary: Facts) -> str:
    """`summary.md`: the tables of the summary, the pictures, the sample, what to do next."""
    lines = [f"# Run {inline(summary['name'])}", "", f"Finished {summary['finished']}."]
    for warning in summary["warnings"]:
        lines += ["", f"**Warning:** {inline(warning)}"]
    for part in summary_tables(summary):
        lines += ["", f"## {part.title}", "", *markdown_table(part.header, part.cells)]
    lines += ["", "## Plots", ""]
    for name, value in summary["plots"].items():
        lines += [f"![{name}]({value})" if value.endswith(".png") else f"{name}: {inline(value)}", ""]
    lines += ["## Sample", "", *fenced(summary["sample"]["prompt"] + summary["sample"]["text"], "text")]
    commands = "\n".join(summary["commands"].values())
    return "\n".join([*lines, "", "## Go on", "", *fenced(commands, "sh")]) + "\n"


def samples_text(summary: Facts) -> str:
    """`samples.txt`."""
    sample = summary["sample"]
    head = f"temperature {sample['temperature']:g}, seed {sample['seed']}, KV policy {summary['kv_policy']}"
    return f"{head}\n\n--- prompt\n{sample['prompt']}\n--- continuation\n{sample['text']}\n"


def outline_tables(facts: Facts, training: str, *more: Row) -> list[Table]:
    """The model, its plugins and its cache."""
    model, data = facts["model"], facts["data"]
    cost = model["cost"]
    forward, backward = cost["forward_flops_per_token"], cost["training_flops_per_token"]
    version = f" of {data['version']}" if data["version"] else ""
    rows = (
        (
            "Layout",
            "{layout}: {n_layers} layers, width {d_model}, {n_heads} heads ({n_kv_heads} key/value), per "
            "head {sem_head_dim} semantic + {geo_head_dim} geometric + {v_head_dim} value".format(**model),
        ),
        ("Parameters", f"{cost['parameters']:,}"),
        ("Context, vocabulary", f"{model['context']} tokens, {model['vocab_size']:,}"),
        ("FLOPs per token", f"{human_count(forward)} forward, {human_count(backward)} training"),
        (
            "Data",
            "{name}{of}, tokenizer {tokenizer}: {train_tokens:,} tokens to train on, {held_out_tokens:,} "
            "held out, sha256 {sha256:.12}".format(of=version, **data),
        ),
        ("Training", training),
        ("Long-sequence training", facts["long_sequence"]["text"]),
        *more,
    )
    return [
        Table.of_facts(rows, title="Model"),
        Table.of_facts(list(_plugin_rows(facts)), title="Plugins"),
        cache_table(facts),
    ]


def _plugin_rows(facts: Facts) -> Iterable[Row]:
    """Kind by kind; where single layers chose, every row of the kind names its layers."""
    for kind in per_layer():
        own = [chosen[kind] for chosen in facts["layer_plugins"].values() if kind in chosen]
        for plugin in [*([facts["plugins"][kind]] if kind in facts["plugins"] else []), *own]:
            title = f"{KINDS[kind].title}, {in_words(plugin['layers'])}" if own else KINDS[kind].title
            options = ", ".join(f"{name}={value}" for name, value in plugin["options"].items())
            given = f" ({options})" if options else ""
            origin = f"{plugin['name']}{given} of {plugin['distribution']} {plugin['version']}"
            if plugin["not_built"] is not None:
                yield title, f"not built: {plugin['not_built']} (else {origin}: {plugin['why']})"
                continue
            yield title, f"{origin}: {plugin['why']}"
            for passed in plugin["passed_over"]:
                yield "", f"passed over {passed}"


def cache_table(facts: Facts) -> Table:
    """Of the policy, its cache and what becomes of the null token."""
    null = ("Null Attention", facts["null_attention"])
    return Table.of_facts([*cache_rows(facts["kv_policy"], facts["kv_memory"]), null], title="KV cache")


def cache_rows(policy: str, kv: Facts) -> Iterable[Row]:
    """The policy, and the bytes of the cache under it."""
    own, standard, fp16 = kv["bytes_context"], kv["standard_bytes_context"], kv["fp16_bytes_context"]
    residual = kv["residual_bytes"]
    window = f" with {human_bytes(residual)} of residual window" if residual else ""
    yield "KV Policy", policy
    per_token = "{bytes_per_token:,} ({bytes_per_token_per_layer:,} a layer)".format(**kv)
    yield "KV bytes per token", f"{per_token}; fp16 standard attention {kv['standard_bytes_per_token']:,}"
    yield (
        f"KV cache at {kv['context']} tokens",
        f"{human_bytes(own)}{window}, {times_smaller(own, standard)} fp16 standard attention "
        f"({human_bytes(standard)}), {times_smaller(own, fp16)} this layout in fp16 ({human_bytes(fp16)})",
    )
    if kv["context"] < kv["long_context"]:
        long, standard = kv["bytes_long"], kv["standard_bytes_long"]
        yield (
            "For scale, at 128k",
            f"{human_bytes(long)}, {times_smaller(long, standard)} fp16 standard attention "
            f"({human_bytes(standard)}): arithmetic, beyond this model's context",
        )


def loss_rows(losses: Facts) -> Iterable[Row]:
    """Of what was measured on held-out text."""
    if losses["train"] is not None:
        yield "Training loss", f"{losses['train']:.4f}"
    text = "{held_out:.4f} over {held_out_tokens:,} tokens ({checkpoint} weights, step {checkpoint_step})"
    yield "Held-out loss", text.format(**losses)
    if losses["held_out_as_trained"] is not None:
        yield "Held-out loss as trained", f"{losses['held_out_as_trained']:.4f} with the long-sequence path"
    per_byte = losses["bits_per_byte"]
    and_per_byte = f", {per_byte:.4f} bits per byte" if per_byte is not None else ""
    yield "Perplexity", f"{losses['perplexity']:.3f}{and_per_byte}"


def fidelity_row(fidelity: Facts | None) -> Row:
    """Of the KV policy."""
    name = "Fidelity of the KV policy"
    if fidelity is None:
        return name, "not measured (evaluation.fidelity_tokens = 0)"
    text = (
        "delta_nll {delta_nll:+.5f}, ppl_ratio {ppl_ratio:.5f}, kl {kl:.2e}, max_abs_logit "
        "{max_abs_logit:.3g} against an fp32 cache, {tokens:,} tokens"
    )
    return name, text.format(**fidelity)


def human_count(count: float) -> str:
    """1234567 -> "1.23M"."""
    if count < 1000:
        return f"{count:.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        count /= 1000
        if count < 999.5 or unit == "P":
            break
    return f"{count:.3g}{unit}"


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"


def times_smaller(own: int, other: int) -> str:
    """(10, 30) -> "3.0x smaller than"; (30, 20) -> "1.5x larger than"."""
    if own == other:
        return "as large as"
    ratio = max(own, other) / min(own, other)
    digits = 1 if ratio >= 1.1 else 2 if ratio >= 1.01 else 3
    return f"{ratio:.{digits}f}x {'smaller' if own < other else 'larger'} than"
