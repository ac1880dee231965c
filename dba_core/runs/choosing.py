"""Which run, which configuration and which plugins a command works on, as its request holds them.

Nothing heavy is imported before a name was looked up: a slip of the hand does not wait for torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from dba_core.command import argument, group, option
from dba_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dba_core.config.loading import LoadedConfig
    from dba_core.contracts import Kind
    from dba_core.registry import Registry
    from dba_core.registry.choice import PluginChoice
    from dba_core.report import Reporter
    from dba_core.runs.load import Run

KV_POLICY_HELP = (
    "Every KV-cache setting at once: a format for semantic keys, geometric keys and values, and how many of "
    "the newest tokens are read in fp16."
)
DEVICE_HELP = "auto, cpu, cuda or cuda:N."


@attrs.frozen(kw_only=True)
class PluginUse:
    """Which plugins may be used, and whether what is done with them is told."""

    no_plugin: tuple[str, ...] = option(
        (),
        help="Do not use this plugin; may be repeated. Also KIND=NAME, DISTRIBUTION:NAME, DISTRIBUTION:*.",
        unit="NAME",
        repeated=True,
        offers="plugin_names",
    )
    trace_plugins: bool = option(
        False, help="Show every import and call of a plugin and its time, on stderr."
    )

    def registry(self, reporter: Reporter) -> Registry:
        """The installed plugins under the block list and the allow list of the environment. With
        `trace_plugins` the reporter is told every event, and before them the `Trace` that sums them up.
        """
        from dba_core.registry import Access, Registry, Trace

        access = Access.from_environment(os.environ, blocked=self.no_plugin)
        trace = Trace(reporter.event) if self.trace_plugins else None
        if trace is not None:
            reporter.event(trace)
        return Registry(access=access, trace=trace)


@attrs.frozen(kw_only=True)
class RunChoice:
    """A run's folder, a unique part of its name under runs/, or `latest`; which weights, and where."""

    run: str = argument(offers="runs")
    checkpoint: str = option("best", help="Which weights.", allowed=("best", "last"))
    device: str | None = option(None, help=DEVICE_HELP, without="the run's", unit="DEVICE", offers="devices")
    allow_drift: bool = option(False, help="Go on where recorded plugins differ from installed.")
    plugin_use: PluginUse = group(PluginUse)

    def load(self, reporter: Reporter, weights: str | None = None, **plugins: PluginChoice) -> Run:
        """weights: as in `load_run`. plugins: by kind, instead of the run's. Raises UsageError for no such
        run, PluginError for a plugin that is missing, and what `load_run` raises.
        """
        if self.device is not None:
            from dba_core.serialization.validators import check_device_name

            check_device_name(self.device, path="device")
        from dba_core.runs.folder import find_run

        folder = find_run(self.run, weights=self.checkpoint)
        registry = self.plugin_use.registry(reporter)
        if weights not in (None, "auto"):
            registry.find("weight_format", weights)
        for kind, choice in plugins.items():
            if choice.name != "auto":
                registry.find(kind, choice.name)
        from dba_core.runs.load import load_run

        run = load_run(
            folder.path,
            self.checkpoint,
            device=self.device,
            plugins=plugins,
            registry=registry,
            allow_drift=self.allow_drift,
            weights=weights,
        )
        for warning in run.warnings:
            reporter.warning(warning)
        return run


@attrs.frozen(kw_only=True)
class ConfigChoice:
    """A configuration: defaults < preset < file < environment < the other fields."""

    preset: str | None = option(
        None, help="Start from a preset (see 'dba config presets').", unit="NAME", offers="presets"
    )
    config_file: Path | None = option(
        None,
        help="A .toml or .json configuration, e.g. a run's resolved_config.json.",
        name="config",
        unit="FILE",
    )
    sets: tuple[str, ...] = option(
        (),
        help="Set one key, as in model.d_model=256.",
        name="set",
        unit="KEY=VALUE",
        repeated=True,
        offers="settings",
    )
    plugins: tuple[str, ...] = option(
        (),
        help="Choose a plugin, for all layers or for some; may be repeated.",
        name="plugin",
        unit="KIND[@layers.0-3]=NAME[:K=V,...]",
        repeated=True,
        offers="plugin_choices",
    )
    kv_policy: str | None = option(None, help=KV_POLICY_HELP, unit="TEXT", offers="kv_policy")
    data: str | None = option(
        None,
        help="Corpus: 'pydoc', a text file, a folder, a .npy or .bin file.",
        unit="PATH",
        offers="corpora",
    )
    name: str | None = option(None, help="The run's name.", unit="NAME")
    device: str | None = option(None, help=DEVICE_HELP, unit="DEVICE", offers="devices")
    compile_model: bool = option(False, help="Compile the model with torch.compile.", name="compile")

    def load(self) -> LoadedConfig:
        """Raises ConfigError."""
        from dba_core.config.loading import load_config

        one_key_each = {
            "data=": ("data.source", self.data),
            "name=": ("name", self.name),
            "device=": ("device", self.device),
            "compile_model=": ("training.compile", self.compile_model or None),
        }
        return load_config(
            preset=self.preset,
            file=_existing(self.config_file),
            environ=os.environ,
            sets=self.sets,
            plugins=self.plugins,
            kv_policy=self.kv_policy,
            options={origin: one for origin, one in one_key_each.items() if one[1] is not None},
        )


def _existing(file: Path | None) -> Path | None:
    """`runs/latest/resolved_config.json` and the like mean the file of the run that `find_run` finds."""
    from dba_core.runs.folder import RunFolder, find_run

    if file is not None and RunFolder(file).is_run:
        raise ConfigError(
            f"{file} is a run's folder; give its file: config_file={str(RunFolder(file).config_file)!r}"
        )
    if file is None or file.exists() or file.name != RunFolder(file.parent).config_file.name:
        return file
    return find_run(file.parent).config_file


def check_plugins(kind: Kind, names: Iterable[str]) -> None:
    """Raises PluginError for names that no installed plugin of the kind has."""
    from dba_core.registry import Registry

    for name in names:
        if name != "auto":
            Registry.default().find(kind, name)


def check_data(source: str | None) -> None:
    """Raises DataError for a corpus that is not there; None is the run's own."""
    if source is not None:
        from dba_core.data.corpus import check_source

        check_source(source)
