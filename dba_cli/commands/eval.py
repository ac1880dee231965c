"""`dba eval`: held-out loss of a run's model and fidelity of a KV policy, on its own data or other data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import click

from dba_cli import completion
from dba_cli.hints import refuse_legacy_flags
from dba_cli.options import DecodingRunChoice, json_option, run_options, special_options
from dba_core.runs.choosing import KV_POLICY_HELP, check_data

if TYPE_CHECKING:
    from dba_core.report import Table
    from dba_core.runs.evaluate import RunEvaluation


@refuse_legacy_flags
@click.command("eval")
@run_options
@click.option(
    "--data",
    metavar="PATH",
    shell_complete=completion.corpora,
    help="Other data, all of it. Without it: the run's held-out part.",
)
@click.option(
    "--kv-policy",
    metavar="TEXT",
    shell_complete=completion.kv_policy,
    help=f"{KV_POLICY_HELP} Without it: the run's own.",
)
@special_options
@click.option(
    "--long-seq", is_flag=True, help="Held-out loss with the long-sequence path and the run's own numbers."
)
@json_option
def evaluate(
    run_flags: DecodingRunChoice,
    data: str | None,
    kv_policy: str | None,
    bos: bool | None,
    eos: bool | None,
    long_seq: bool,
    as_json: bool,
) -> None:
    """Held-out loss, perplexity, bits per byte and KV-cache fidelity of RUN.

    RUN is a run's folder, a unique part of its name under runs/, or 'latest'.

    \b
    Examples:
      dba eval latest
      dba eval latest --kv-policy "ksem=q4_0@32,kgeo=q4_0@32,v=q4_0@32,resid=0"
      dba eval latest --data pydoc --json
      dba eval latest --weights int8
      dba eval latest --long-seq
    """
    from dba_cli.output.rendering import echo_json, sections
    from dba_core.config.kv_policy import KVCachePolicy

    policy = None if kv_policy is None else KVCachePolicy.parse(kv_policy)
    check_data(data)
    from dba_cli.output.progress import TerminalReporter

    run = run_flags.load(TerminalReporter())
    from dba_core.report import as_plain
    from dba_core.runs.evaluate import evaluate_run

    result = evaluate_run(run, data=data, policy=policy, long_seq=long_seq, bos=bos, eos=eos)
    if as_json:
        echo_json(as_plain(result))
        return
    sections(f"Evaluation of {run.folder.path}", _tables(result))


def _tables(result: RunEvaluation) -> list[Table]:
    """The words of a run's own summary."""
    from dba_core.report import Table
    from dba_core.runs.pages import cache_table, fidelity_row, human_bytes, loss_rows

    losses = {
        "train": None,
        "held_out": result.held_out.loss,
        "held_out_as_trained": None,
        "perplexity": result.held_out.perplexity,
        "bits_per_byte": result.held_out.bits_per_byte,
        "held_out_tokens": result.held_out.tokens,
        "checkpoint": result.checkpoint,
        "checkpoint_step": result.checkpoint_step,
    }
    attention = "exact" if result.long_sequence is None else result.long_sequence["text"]
    fidelity = None if result.fidelity is None else attrs.asdict(result.fidelity)
    packed = result.weights["format"] or "as trained"
    results = [("Data", result.data["name"]), ("Attention", attention)]
    results.append(("Weights", f"{packed}, {human_bytes(result.weights['bytes'])}"))
    results += [*loss_rows(losses), fidelity_row(fidelity)]
    return [Table.of_facts(results, title="Results"), cache_table(attrs.asdict(result, recurse=False))]
