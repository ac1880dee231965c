"""The options that choose a run and its checkpoint, shared by `sample`, `eval` and `drift`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completing
from dba_cli.plugin_options import PluginFlags, plugin_options
from dba_cli.terminal import warn
from dba_core.errors import UsageError

if TYPE_CHECKING:
    from dba_core.contracts import Kind
    from dba_core.registry.choice import PluginChoice
    from dba_core.runs.load import Run

Command = Callable[..., Any]

KV_POLICY_HELP = (
    "Every KV-cache setting at once: a format for semantic keys, geometric keys and values, and how many of "
    "the newest tokens are read in fp16."
)


SPECIAL_HELP = "Without it: as the model's own tokenizer does."

_SPECIAL = (
    click.option(
        "--bos/--no-bos",
        default=None,
        help=f"Begin a text with the model's BOS token, or do not. {SPECIAL_HELP}",
    ),
    click.option(
        "--eos/--no-eos",
        default=None,
        help=f"End a text with the model's EOS token, or do not. {SPECIAL_HELP}",
    ),
)


def special_options(command: Command) -> Command:
    """Add the options of a command that reads texts; it gets them as `bos` and `eos`, None if not given."""
    for option in reversed(_SPECIAL):
        command = option(command)
    return command


@attrs.frozen(kw_only=True)
class RunFlags:
    """Which run, as typed."""

    run: str
    checkpoint: str
    device: str | None
    allow_drift: bool
    plugins: tuple[str, ...] = ()
    plugin_flags: PluginFlags = attrs.field(factory=PluginFlags)

    def load(self) -> Run:
        """Raises UsageError for no such run or a plugin that the weights depend on."""
        replaced = dict(map(_decode_backend, self.plugins))
        if self.device is not None:
            from dba_core.serialization.validators import check_device_name

            check_device_name(self.device, path="device")
        from dba_core.runs.folder import find_run

        folder = find_run(self.run, weights=self.checkpoint)
        registry = self.plugin_flags.registry()
        for kind, choice in replaced.items():
            if choice.name != "auto":
                registry.find(kind, choice.name)
        from dba_core.runs.load import load_run

        run = load_run(
            folder.path,
            self.checkpoint,
            device=self.device,
            plugins=replaced,
            registry=registry,
            allow_drift=self.allow_drift,
        )
        for warning in run.warnings:
            warn(warning)
        return run


def _decode_backend(text: str) -> tuple[Kind, PluginChoice]:
    from dba_core.config.overrides import parse_plugin
    from dba_core.registry.choice import PluginChoice

    given = parse_plugin(text)
    if given.kind != "decode_backend":
        raise UsageError(
            f"--plugin {text!r}: a trained model keeps its {given.kind}; only decode_backend can be chosen "
            "here, as in --plugin decode_backend=streaming"
        )
    if given.layers:
        raise UsageError(
            f"--plugin {text!r}: here a decode backend is for all layers; leave out @layers.{given.layers}"
        )
    return given.kind, PluginChoice(given.name, options=given.options)


_OPTIONS = (
    click.argument("run", shell_complete=completing.runs),
    click.option(
        "--checkpoint",
        type=click.Choice(["best", "last"]),
        default="best",
        show_default=True,
        help="Which weights.",
    ),
    click.option(
        "--device",
        metavar="DEVICE",
        shell_complete=completing.devices,
        help="auto, cpu, cuda or cuda:N. Without it: the run's.",
    ),
    click.option("--allow-drift", is_flag=True, help="Go on where recorded plugins differ from installed."),
)


_PLUGIN = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="decode_backend=NAME[:K=V,...]",
    shell_complete=completing.decode_backends,
    help="Another decode backend than the run's.",
)


def run_options(command: Command) -> Command:
    """Add the options; the command gets them as one `run_flags: RunFlags`."""
    return weights_options(_PLUGIN(command))


def weights_options(command: Command) -> Command:
    """The same without `--plugin`, for a command that decodes nothing."""
    names = {field.name for field in attrs.fields(RunFlags)}

    @plugin_options
    @functools.wraps(command)
    def with_flags(*args: Any, **kwargs: Any) -> Any:
        run_flags = RunFlags(**{name: kwargs.pop(name) for name in names & kwargs.keys()})
        return command(*args, run_flags=run_flags, **kwargs)

    for option in reversed(_OPTIONS):
        with_flags = option(with_flags)
    return with_flags
