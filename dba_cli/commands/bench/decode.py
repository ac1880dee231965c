"""`dba bench decode`: one decoded token per sequence over a long cache, beside the alternatives."""

from __future__ import annotations

from typing import Any

import click

from dba_cli.commands.bench.common import (
    Output,
    command_line,
    names,
    numbers,
    repeats_option,
    report_options,
    show,
    threads_option,
)

_NULLS = {"off": (False,), "on": (True,), "both": (False, True)}


@click.command()
@click.option(
    "--batch", callback=numbers(least=1), default="1,4", show_default=True, metavar="N,...", help="Sequences."
)
@click.option(
    "--length",
    callback=numbers(least=1),
    default="4096,32768,131072",
    show_default=True,
    metavar="N,...",
    help="Cached tokens of each sequence.",
)
@click.option("--heads", type=click.IntRange(min=1), default=8, show_default=True, help="Query heads.")
@click.option("--kv-heads", type=click.IntRange(min=1), help="Key/value heads. Without it: as many.")
@click.option(
    "--sem-dim", type=click.IntRange(min=0), default=32, show_default=True, help="Semantic width of a head."
)
@click.option(
    "--geo-dim", type=click.IntRange(min=1), default=64, show_default=True, help="Geometric width of a head."
)
@click.option("--v-dim", type=click.IntRange(min=1), default=64, show_default=True, help="Width of a value.")
@click.option(
    "--kv-policy",
    metavar="POLICY",
    default="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    show_default=True,
    help="Formats of the cache.",
)
@click.option(
    "--backend",
    "backends",
    callback=names,
    metavar="NAME,...",
    help="Decode backends. Without it: all that support the request.",
)
@click.option(
    "--null", type=click.Choice(list(_NULLS)), default="off", show_default=True, help="With a null token."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--flex/--no-flex", default=True, show_default=True, help="Compile FlexAttention, which takes a minute."
)
@threads_option
@repeats_option(20)
@report_options
def decode(
    output: Output, device: str, heads: int, kv_heads: int | None, null: str, kv_policy: str, **rest: Any
) -> None:
    """Decode one token over caches of each length, beside float attention over the same tokens.

    \b
    Examples:
      dba bench decode --threads 1,2
      dba bench decode --batch 1 --length 8192 --heads 32 --kv-heads 8 --no-flex
      dba bench decode --backend cpu --null both --kv-policy "ksem=q8_0,kgeo=q8_0,v=q8_0,resid=128"
    """
    from dba_core.bench.charts import decode_chart
    from dba_core.bench.decode import measure_decode

    settings = _settings(device, heads, kv_heads, null, kv_policy, rest)
    show(measure_decode(settings, command=command_line(), on_case=output.progress), output, draw=decode_chart)


def _settings(
    device: str, heads: int, kv_heads: int | None, null: str, kv_policy: str, rest: dict[str, Any]
) -> Any:
    from dba_core.bench.decode import DecodeSettings
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.contracts import AttentionShape
    from dba_core.errors import UsageError
    from dba_core.runs.device import resolve_device

    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise UsageError(
            f"--heads {heads} is not a multiple of --kv-heads {kv_heads}; give one that divides it"
        )
    shape = AttentionShape(
        d_model=heads * (rest["sem_dim"] + rest["geo_dim"]),
        n_heads=heads,
        n_kv_heads=kv_heads,
        sem_head_dim=rest["sem_dim"],
        geo_head_dim=rest["geo_dim"],
        v_head_dim=rest["v_dim"],
    )
    return DecodeSettings(
        shape=shape,
        policy=KVCachePolicy.parse(kv_policy),
        batches=rest["batch"],
        lengths=rest["length"],
        threads=rest["threads"],
        backends=rest["backends"],
        nulls=_NULLS[null],
        repeats=rest["repeats"],
        flex=rest["flex"],
        device=resolve_device(device),
    )
