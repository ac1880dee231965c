"""`dba bench decode`: one decoded token per sequence over a long cache, beside the alternatives."""

from __future__ import annotations

from typing import Any

import click

from dba_cli import completing
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
from dba_core.runs.choosing import check_plugins

_NULLS = {"off": (False,), "on": (True,), "both": (False, True)}


@click.command()
@click.option(
    "--batch", callback=numbers(least=1), metavar="N,...", help="Sequences. Without it: 1,4; on a GPU 1,8,64."
)
@click.option(
    "--length",
    callback=numbers(least=1),
    default="4096,32768,131072",
    show_default=True,
    metavar="N,...",
    help="Cached tokens of each sequence.",
)
@click.option("--heads", type=click.IntRange(min=1), help="Query heads. Without it: 8; on a GPU 32.")
@click.option(
    "--kv-heads",
    callback=numbers(least=1),
    metavar="N,...",
    help="Key/value heads. Without it: as many; on a GPU 8,32.",
)
@click.option(
    "--sem-dim", type=click.IntRange(min=0), default=32, show_default=True, help="Semantic width of a head."
)
@click.option(
    "--geo-dim", type=click.IntRange(min=1), default=64, show_default=True, help="Geometric width of a head."
)
@click.option(
    "--v-dim",
    callback=numbers(least=1),
    metavar="N,...",
    help="Width of a value. Without it: 64; on a GPU 64,128.",
)
@click.option(
    "--kv-policy",
    shell_complete=completing.kv_policy,
    metavar="POLICY",
    default="ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32",
    show_default=True,
    help="Formats of the cache.",
)
@click.option(
    "--backend",
    "backends",
    shell_complete=completing.backend_list,
    callback=names,
    metavar="NAME,...",
    help="Decode backends. Without it: all that support the request.",
)
@click.option(
    "--null", type=click.Choice(list(_NULLS)), help="With a null token. Without it: off; on a GPU both."
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    shell_complete=completing.devices,
    help="cpu, cuda or cuda:N.",
)
@click.option(
    "--budget-seconds",
    type=click.FloatRange(min=1),
    default=480,
    show_default=True,
    help="On a GPU: no case begins after that.",
)
@click.option(
    "--flex/--no-flex", default=True, show_default=True, help="Compile FlexAttention, which takes a minute."
)
@threads_option
@repeats_option(20)
@report_options
def decode(output: Output, device: str, kv_policy: str, **rest: Any) -> None:
    """Decode one token over caches of each length, beside float attention over the same tokens.

    \b
    Examples:
      dba bench decode --threads 1,2
      dba bench decode --batch 1 --length 8192 --heads 32 --kv-heads 8 --no-flex
      dba bench decode --backend cpu --null both --kv-policy "ksem=q8_0,kgeo=q8_0,v=q8_0,resid=128"
      dba bench decode --device cuda --budget-seconds 480 --save docs/benchmarks
    """
    from dba_core.config.kv_policy import KVCachePolicy

    check_plugins("decode_backend", rest["backends"])
    from dba_core.runs.prepare import resolve_device

    policy, device = KVCachePolicy.parse(kv_policy), resolve_device(device)
    if device.startswith("cuda"):
        _on_gpu(output, device, policy, rest)
        return
    from dba_plugins.bench.charts import decode_chart
    from dba_plugins.bench.decode import measure_decode

    settings = _settings(device, policy, rest)
    show(measure_decode(settings, command=command_line(), on_case=output.progress), output, draw=decode_chart)


def _settings(device: str, policy: Any, rest: dict[str, Any]) -> Any:
    from dba_core.contracts import AttentionShape
    from dba_plugins.bench.decode import DecodeSettings

    heads = rest["heads"] or 8
    kv_heads, v_dim = _one("--kv-heads", rest["kv_heads"], heads), _one("--v-dim", rest["v_dim"], 64)
    _check_heads(heads, (kv_heads,))
    shape = AttentionShape(
        d_model=heads * (rest["sem_dim"] + rest["geo_dim"]),
        n_heads=heads,
        n_kv_heads=kv_heads,
        sem_head_dim=rest["sem_dim"],
        geo_head_dim=rest["geo_dim"],
        v_head_dim=v_dim,
    )
    return DecodeSettings(
        shape=shape,
        policy=policy,
        batches=rest["batch"] or (1, 4),
        lengths=rest["length"],
        threads=rest["threads"],
        backends=rest["backends"],
        nulls=_NULLS[rest["null"] or "off"],
        repeats=rest["repeats"],
        flex=rest["flex"],
        device=device,
    )


def _on_gpu(output: Output, device: str, policy: Any, rest: dict[str, Any]) -> None:
    from dba_core.errors import UsageError
    from dba_plugins.bench.decode_gpu import GpuDecodeSettings, measure_gpu_decode

    if output.plot:
        raise UsageError("there is no picture of decoding on a GPU; leave --plot out")
    heads, kv_heads = rest["heads"] or 32, rest["kv_heads"] or (8, 32)
    _check_heads(heads, kv_heads)
    settings = GpuDecodeSettings(
        policy=policy,
        heads=heads,
        kv_heads=kv_heads,
        sem_dim=rest["sem_dim"],
        geo_dim=rest["geo_dim"],
        v_dims=rest["v_dim"] or (64, 128),
        batches=rest["batch"] or (1, 8, 64),
        lengths=rest["length"],
        nulls=_NULLS[rest["null"] or "both"],
        backends=rest["backends"],
        repeats=rest["repeats"],
        budget_seconds=rest["budget_seconds"],
        device=device,
    )
    show(measure_gpu_decode(settings, command=command_line(), on_case=output.progress), output)


def _one(option: str, given: tuple[int, ...], default: int) -> int:
    from dba_core.errors import UsageError

    if len(given) > 1:
        raise UsageError(f"{option} takes one number on the CPU, got {','.join(map(str, given))}; give one")
    return given[0] if given else default


def _check_heads(heads: int, kv_heads: tuple[int, ...]) -> None:
    from dba_core.errors import UsageError

    for each in kv_heads:
        if heads % each:
            raise UsageError(
                f"--heads {heads} is not a multiple of --kv-heads {each}; give one that divides it"
            )
