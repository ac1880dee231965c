"""`dba convert`: a pretrained Llama-family model as a decoupled one; what it cost and what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dba_cli import completing
from dba_cli.options import special_options
from dba_cli.terminal import echo, warn
from dba_core.runs.choosing import KV_POLICY_HELP

if TYPE_CHECKING:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_plugins.convert.decouple import Recipe
    from dba_plugins.convert.report import ConversionReport
    from dba_plugins.convert.request import ConvertRequest, Wanted


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
    "--keep", is_flag=True, help="Change nothing: make a run's folder of MODEL as it is, and measure it."
)
@click.option(
    "--budget-bytes",
    type=int,
    metavar="N",
    help="Search --pairs, --latent and --kv-policy, those that are not given: the best of N bytes per token, "
    "all layers and the residual window included.",
)
@click.option(
    "--max-delta-nll",
    type=float,
    metavar="X",
    help="Search them for the smallest cache that loses at most X nats per token.",
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
@click.option("--kv-policy", metavar="POLICY", shell_complete=completing.kv_policy, help=KV_POLICY_HELP)
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
@click.option(
    "--target-context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of the sequence that --budget-bytes is for and that bytes are reported at too. Without it: "
    "--context.",
)
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json, where the model has none of its own.")
@special_options
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

    MODEL is the folder of a Hugging Face Llama-family model, a .gguf file, or a checkpoint of the origin
    system (.pt; one that is decoupled already needs --keep).

    \b
    Examples:
      dba convert ./SmolLM2-135M --out runs/smol
      dba convert ./SmolLM2-135M --out runs/small --budget-bytes 7500
      dba convert ./SmolLM2-135M --out runs/good --max-delta-nll 0.02
      dba convert model.gguf --out runs/mine --pairs 12 --calibrate book.txt --eval other.txt
      dba convert ./Llama-3.2-1B --out runs/llama --latent 128 --heal-steps 50
      dba convert origin.pt --out runs/origin --keep --tokenizer tiktoken:gpt2
    """
    from dba_cli.convert_progress import ConvertProgress
    from dba_plugins.convert.job import convert as run_conversion

    request = _request(model, out, **settings)
    with ConvertProgress(quiet=quiet) as reporter:
        report = run_conversion(request, reporter)
    _show(report, out, as_json=as_json)


#: What only a decoupling reads, and so means nothing with --keep.
_DECOUPLING = (
    "pairs",
    "rule",
    "latent",
    "spread",
    "fit",
    "calibrate",
    "calibrate_tokens",
    "comparators",
    "heal_steps",
    "budget_bytes",
    "max_delta_nll",
)


def _request(
    model: Path,
    out: Path,
    *,
    keep: bool,
    budget_bytes: int | None,
    max_delta_nll: float | None,
    pairs: int,
    rule: str,
    latent: int | None,
    spread: bool,
    fit: bool,
    kv_policy: str | None,
    **rest: Any,
) -> ConvertRequest:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_plugins.convert.decouple import Recipe
    from dba_plugins.convert.request import DEFAULT_POLICY, ConvertRequest

    if keep:
        _refuse_with_keep()
    recipe = Recipe(pairs=pairs, rule=rule, latent=latent, spread=spread, fit=fit)
    policy = None if kv_policy is None else KVCachePolicy.parse(kv_policy)
    return ConvertRequest(
        model=model,
        out=out,
        recipe=None if keep else recipe,
        policy=policy or DEFAULT_POLICY,
        search=_search(recipe, policy, budget_bytes, max_delta_nll),
        **rest,
    )


def _search(
    recipe: Recipe, policy: KVCachePolicy | None, budget_bytes: int | None, max_delta_nll: float | None
) -> Wanted | None:
    """The search that was asked for; what was given on the command line stays fixed in it."""
    if budget_bytes is None and max_delta_nll is None:
        return None
    from dba_plugins.convert.recipe_search import Scope
    from dba_plugins.convert.request import Wanted
    from dba_plugins.tune.search import Goal

    return Wanted(
        goal=Goal(budget_bytes=budget_bytes, max_delta_nll=max_delta_nll),
        scope=Scope(
            base=recipe,
            pairs=recipe.pairs if _given("pairs") else None,
            latent=(recipe.latent,) if _given("latent") else None,
            policy=policy,
        ),
    )


def _given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse_with_keep() -> None:
    command = click.get_current_context().command
    flags = {param.name: param.opts[0] for param in command.params}
    wrong = [flags[name] for name in _DECOUPLING if _given(name)]
    if wrong:
        raise click.UsageError(
            f"--keep changes nothing in the model, so {', '.join(wrong)} would do nothing; leave one or the "
            "other out"
        )


def _show(report: ConversionReport, out: Path, *, as_json: bool) -> None:
    from dba_cli.rendering import columns, echo_json
    from dba_plugins.convert.report import SEARCH_HEADER, files_read, header, rows, search_rows

    if as_json:
        echo_json(report.to_dict())
    else:
        if report.search is not None:
            columns(
                f"Search: {report.search.goal}, at {report.target_context:,} tokens",
                SEARCH_HEADER,
                search_rows(report.search),
            )
        decoupled = "" if report.recipe is None else ", decoupled"
        columns(f"{report.source}{decoupled}", header(report), rows(report))
        echo(files_read(report))
        echo(
            "First row: nats per token. Others: difference to it, and its standard error over windows. "
            "Bytes: of a cache of so many tokens, residual window included."
        )
        echo(f'\nNext:\n  dba sample {out} --prompt "The capital of France is"\n  dba eval {out}')
    for warning in report.warnings:
        warn(warning)
    echo(f"Wrote {out}", err=True)
