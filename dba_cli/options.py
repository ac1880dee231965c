"""The options that choose a configuration, shared by `run`, `config` and `plugins why`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completing
from dba_cli.run_options import KV_POLICY_HELP

if TYPE_CHECKING:
    from dba_core.config.loading import LoadedConfig

Command = Callable[..., Any]


@attrs.frozen(kw_only=True)
class ConfigFlags:
    """What the command line says about the configuration, as typed."""

    preset: str | None = None
    config_file: Path | None = None
    sets: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    kv_policy: str | None = None
    data: str | None = None
    name: str | None = None
    device: str | None = None
    compile_model: bool = False

    @property
    def given(self) -> list[str]:
        """The flags that were used, for the places where they may not be."""
        used = {
            "--preset": self.preset,
            "--config": self.config_file,
            "--set": self.sets,
            "--plugin": self.plugins,
            "--kv-policy": self.kv_policy,
            "--data": self.data,
            "--name": self.name,
            "--device": self.device,
            "--compile": self.compile_model,
        }
        return [flag for flag, value in used.items() if value not in (None, (), False)]

    @property
    def one_key_each(self) -> dict[str, tuple[str, Any]]:
        """The options that stand for one key: `--data X` is `--set data.source=X`."""
        short = {
            "--data": ("data.source", self.data),
            "--name": ("name", self.name),
            "--device": ("device", self.device),
            "--compile": ("training.compile", self.compile_model or None),
        }
        return {option: (key, value) for option, (key, value) in short.items() if value is not None}

    def load(self) -> LoadedConfig:
        """Defaults < preset < file < environment < the command line. Raises ConfigError."""
        from dba_core.config.loading import load_config

        return load_config(
            preset=self.preset,
            file=_existing(self.config_file),
            environ=os.environ,
            sets=self.sets,
            plugins=self.plugins,
            kv_policy=self.kv_policy,
            options=self.one_key_each,
        )


def _existing(file: Path | None) -> Path | None:
    """`runs/latest/resolved_config.json` and the like mean the file of the run that `find_run` finds."""
    from dba_core.errors import ConfigError
    from dba_core.runs.folder import RunFolder, find_run

    if file is not None and RunFolder(file).is_run:
        raise ConfigError(f"{file} is a run's folder; give its file: --config {RunFolder(file).config_file}")
    if file is None or file.exists() or file.name != RunFolder(file.parent).config_file.name:
        return file
    return find_run(file.parent).config_file


_OPTIONS = (
    click.option(
        "--preset",
        metavar="NAME",
        shell_complete=completing.presets,
        help="Start from a preset (see 'dba config presets').",
    ),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A .toml or .json configuration, e.g. a run's resolved_config.json.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=completing.settings,
        help="Set one key: --set model.d_model=256.",
    ),
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="KIND[@layers.0-3]=NAME[:K=V,...]",
        shell_complete=completing.plugin_choices,
        help="Choose a plugin, for all layers or for some; may be repeated.",
    ),
    click.option("--kv-policy", metavar="TEXT", shell_complete=completing.kv_policy, help=KV_POLICY_HELP),
    click.option(
        "--data",
        metavar="PATH",
        shell_complete=completing.corpora,
        help="Corpus: 'pydoc', a text file, a folder, a .npy or .bin file.",
    ),
    click.option("--name", metavar="NAME", help="The run's name."),
    click.option(
        "--device", metavar="DEVICE", shell_complete=completing.devices, help="auto, cpu, cuda or cuda:N."
    ),
    click.option("--compile", "compile_model", is_flag=True, help="Compile the model with torch.compile."),
)


def config_options(command: Command) -> Command:
    """Add the options; the command gets them as one `flags: ConfigFlags`."""
    names = [field.name for field in attrs.fields(ConfigFlags)]

    @functools.wraps(command)
    def with_flags(*args: Any, **kwargs: Any) -> Any:
        flags = ConfigFlags(**{name: kwargs.pop(name) for name in names})
        return command(*args, flags=flags, **kwargs)

    for option in reversed(_OPTIONS):
        with_flags = option(with_flags)
    return with_flags
