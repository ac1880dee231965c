"""`dba run`: train, evaluate and decode one model, and leave a folder that explains itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completion
from dba_cli.hints import refuse_legacy_flags
from dba_cli.options import (
    config_options,
    json_option,
    load_checked,
    plugin_options,
    quiet_option,
    strict_option,
)
from dba_cli.output.terminal import echo
from dba_core.command import given_flags
from dba_core.errors import UsageError
from dba_core.runs.choosing import ConfigChoice, PluginUse, check_data

if TYPE_CHECKING:
    from dba_core.report import Table
    from dba_core.runs.summary import Summary


@refuse_legacy_flags
@click.command()
@config_options
@plugin_options
@strict_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    metavar="DIR",
    help="Where the run's folder is made.",
)
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=completion.runs,
    help="Go on with an interrupted run, in its own folder.",
)
@click.option("--print-config", is_flag=True, help="Show every value and where it came from, and stop.")
@click.option("--dry-run", is_flag=True, help="Show sizes, costs and plugins; train nothing, write nothing.")
@click.option("--allow-drift", is_flag=True, help="Go on where recorded plugins differ from installed.")
@json_option
@quiet_option
def run(
    flags: ConfigChoice,
    plugin_flags: PluginUse,
    strict: bool,
    out: Path,
    resume: str | None,
    print_config: bool,
    dry_run: bool,
    allow_drift: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train, evaluate and decode a model; leave a run folder.

    The corpus is --data: a text file, a folder of texts, a token array, or 'pydoc', which ships with Python.
    Settings: defaults < --preset < --config < DBA__SECTION__KEY variables < --set, --plugin, --kv-policy.

    \b
    Examples:
      dba run
      dba run --preset shakespeare-cpu --data pydoc
      dba run --plugin gate=static --plugin null_token=learned
      dba run --plugin summarizer@layers.0-1=conv --plugin summarizer=mean --strict
      dba run --kv-policy "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=64"
      dba run --set training.steps=100 --set model.n_layers=2 --name small
      dba run --dry-run --preset paper-decoupled
      dba run --config runs/latest/resolved_config.json
      dba run --resume latest
    """
    if sum((resume is not None, print_config, dry_run)) > 1:
        raise UsageError("--resume, --print-config and --dry-run exclude each other; give one of them")
    if print_config and (given_flags(plugin_flags) or strict):
        flags_given = ", ".join([*given_flags(plugin_flags), *(["--strict"] if strict else [])])
        raise UsageError(f"--print-config chooses no plugin; leave out {flags_given}, or use --dry-run")
    options = _RunOptions(plugin_flags, allow_drift=allow_drift, strict=strict, as_json=as_json, quiet=quiet)
    if resume is not None:
        _resume(resume, flags, options)
    elif print_config:
        from dba_cli.commands.config import print_config as show

        show(flags, as_json=as_json)
    elif dry_run:
        _dry_run(flags, options)
    else:
        _run(flags, out, options)


@attrs.frozen
class _RunOptions:
    """What holds for a new run, a resumed one and a dry one."""

    plugin_flags: PluginUse
    allow_drift: bool = attrs.field(kw_only=True)
    strict: bool = attrs.field(kw_only=True)
    as_json: bool = attrs.field(kw_only=True)
    quiet: bool = attrs.field(kw_only=True)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the job is told about plugins."""
        from dba_cli.output.progress import TerminalReporter

        registry = self.plugin_flags.registry(TerminalReporter())
        return {"registry": registry, "allow_drift": self.allow_drift, "strict": self.strict}


def _run(flags: ConfigChoice, out: Path, options: _RunOptions) -> None:
    arguments = options.arguments
    loaded = load_checked(flags, arguments["registry"])
    check_data(loaded.config.data.source)
    from dba_cli.output.progress import TerminalReporter
    from dba_core.runs.job import run_job

    with TerminalReporter(quiet=options.quiet) as reporter:
        run_job(loaded, root=out, reporter=reporter, **arguments)
    _show(reporter.summary, as_json=options.as_json)


def _resume(text: str, flags: ConfigChoice, options: _RunOptions) -> None:
    refused = [flag for flag in given_flags(flags) if flag != "--device"]
    if refused:
        raise UsageError(
            f"--resume goes on with the configuration that the run recorded; {', '.join(refused)} cannot "
            "change it. Leave that out, or start a new run with --config RUN/resolved_config.json"
        )
    from dba_core.runs.folder import find_run

    folder = find_run(text)
    from dba_cli.output.progress import TerminalReporter
    from dba_core.runs.job import resume_job

    with TerminalReporter(quiet=options.quiet) as reporter:
        resume_job(folder.path, device=flags.device, reporter=reporter, **options.arguments)
    _show(reporter.summary, as_json=options.as_json)


def _dry_run(flags: ConfigChoice, options: _RunOptions) -> None:
    arguments = options.arguments
    loaded = load_checked(flags, arguments["registry"])
    check_data(loaded.config.data.source)
    from dba_cli.output.rendering import echo_json, sections
    from dba_core.report import as_plain
    from dba_core.runs.summary import dry_run

    facts = dry_run(loaded, **arguments)
    if options.as_json:
        echo_json(as_plain(facts))
        return
    sections(f"Run {facts['name']}, not trained", _dry_run_tables(facts))


def _dry_run_tables(facts: Mapping[str, Any]) -> list[Table]:
    """What is known before training, and what that would take."""
    from dba_core.free_memory import gib
    from dba_core.runs.pages import human_count, outline_tables

    need, free = facts["memory"], facts["memory_free"]
    names = ("weights", "gradients", "optimizer", "activations", "logits")
    parts = ", ".join(f"{'AdamW' if name == 'optimizer' else name} {gib(need[name])}" for name in names)
    memory = f"at least {gib(need['total'])}: {parts}"
    if free is not None:
        verdict = "" if need["total"] <= free else "; it does not fit here"
        memory += f"; {gib(free)} free on {facts['device']}{verdict}"
    flops = human_count(facts["training_flops"])
    training = "{steps} steps, {training_tokens:,} tokens, {flops} FLOPs".format(flops=flops, **facts)
    return outline_tables(facts, training, ("Device", facts["device"]), ("Memory", memory))


def _show(summary: Summary | None, *, as_json: bool) -> None:
    """Nothing on the other processes of a torchrun, which have no summary."""
    if summary is None:
        return
    from dba_cli.output.rendering import echo_json, sections
    from dba_core.report import as_plain
    from dba_core.runs.pages import summary_tables

    facts = summary.facts
    if as_json:
        echo_json(as_plain(facts))
        return
    sections(f"Run {facts['name']}", summary_tables(facts))
    echo(f"\nSample: {facts['sample']['prompt']}{facts['sample']['text']}\n")
    echo(f"Everything is in {facts['folder']}. Go on with:")
    for command in facts["commands"].values():
        echo(f"  {command}")
