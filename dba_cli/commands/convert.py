"""`dba convert`: a pretrained Llama-family model as a decoupled one; what it cost and what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dba_cli.run_options import KV_POLICY_HELP

if TYPE_CHECKING:
    from dba_core.convert.report import ConversionReport


def _latent(_ctx: click.Context, _param: click.Parameter, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither a whole number >= 1 nor 'none'; write 64, say.")
    return int(text)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder to make; `dba sample`, `dba eval` and `load_run` read it.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Channel pairs of a head that become semantic.",
)
@click.option(
    "--select",
    "rule",
    type=click.Choice(["kl", "norm", "low"]),
    default="kl",
    show_default=True,
    help="Which pairs: those that change the attention least (kl), the shortest (norm), the slowest (low).",
)
@click.option(
    "--latent",
    callback=_latent,
    default="none",
    show_default=True,
    metavar="N|none",
    help="One semantic key of N channels for all KV heads; none: one per head.",
)
@click.option(
    "--spread/--no-spread",
    default=True,
    show_default=True,
    help="Mix the channels of semantic keys and of values, which quantizes better and costs nothing.",
)
@click.option(
    "--fit/--no-fit",
    default=True,
    show_default=True,
    help="Turn and scale the queries of pairs that lose their rotation, as fits the attention best.",
)
@click.option("--kv-policy", metavar="POLICY", help=KV_POLICY_HELP)
@click.option(
    "--calibrate",
    default="docstrings",
    show_default=True,
    metavar="TEXT",
    help="What to measure on: a text as for --data of `dba run`.",
)
@click.option(
    "--calibrate-tokens", type=click.IntRange(min=1), default=12288, show_default=True, help="Tokens of it."
)
@click.option(
    "--eval",
    "evaluate",
    multiple=True,
    default=("pydoc",),
    show_default=True,
    metavar="TEXT",
    help="What to report the loss on; may be repeated. Not the calibration text.",
)
@click.option(
    "--eval-tokens", type=click.IntRange(min=1), default=8192, show_default=True, help="Tokens of each."
)
@click.option(
    "--context",
    type=click.IntRange(min=2),
    help="Tokens of a sequence. Without it: 2048, or the model's where that is less.",
)
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json, where the model has none of its own.")
@click.option(
    "--comparators/--no-comparators",
    default=True,
    show_default=True,
    help="Measure the source under the same formats too.",
)
@click.option(
    "--heal-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Steps in which the source teaches the new projections; undone where they make it worse.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; warnings and errors stay.")
def convert(model: Path, out: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Make a decoupled model of MODEL without training, and report what that costs.

    MODEL is the folder of a Hugging Face Llama-family model, or a .gguf file.

    \b
    Examples:
      dba convert ./SmolLM2-135M --out runs/smol
      dba convert model.gguf --out runs/mine --pairs 12 --calibrate book.txt --eval other.txt
      dba convert ./Llama-3.2-1B --out runs/llama --latent 128 --heal-steps 50
    """
    from dba_cli.convert_progress import ConvertProgress
    from dba_core.convert.job import convert as run_conversion

    with ConvertProgress(quiet=quiet) as reporter:
        report = run_conversion(_request(model, out, **settings), reporter)
    _show(report, out, as_json=as_json)


def _request(
    model: Path,
    out: Path,
    *,
    pairs: int,
    rule: str,
    latent: int | None,
    spread: bool,
    fit: bool,
    kv_policy: str | None,
    **rest: Any,
) -> Any:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.convert.decouple import Recipe
    from dba_core.convert.job import DEFAULT_POLICY, ConvertRequest

    return ConvertRequest(
        model=model,
        out=out,
        recipe=Recipe(pairs=pairs, rule=rule, latent=latent, spread=spread, fit=fit),
        policy=DEFAULT_POLICY if kv_policy is None else KVCachePolicy.parse(kv_policy),
        **rest,
    )


def _show(report: ConversionReport, out: Path, *, as_json: bool) -> None:
    from dba_cli.rendering import columns, echo_json
    from dba_core.convert.report import header, rows

    if as_json:
        echo_json(report.to_dict())
    else:
        columns(f"{report.source}, decoupled", header(report), rows(report))
        click.echo(
            "First row: nats per token. Others: difference to it, and its standard error over windows."
        )
        click.echo(f'\nNext:\n  dba sample {out} --prompt "The capital of France is"\n  dba eval {out}')
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"Wrote {out}", err=True)
