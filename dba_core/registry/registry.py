"""The registry: what is installed, loaded only when asked for, chosen with reasons.

Called by the attention and the model (`select`), the runs (`check_records`), `dba plugins` (`list`, `load`).
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable
from importlib.metadata import Distribution
from typing import Any

import attrs

from dba_core.config.plugins import PluginChoice
from dba_core.contracts import KINDS, Kind, Request
from dba_core.errors import ConfigError, DBAError, PluginError, UnsupportedError, unknown
from dba_core.registry.auto_order import AutoOrder, read_auto_order
from dba_core.registry.contain import contain
from dba_core.registry.discovery import Discovery, PluginInfo, canonical, discover, name_problem
from dba_core.registry.loading import LoadedPlugin, check_plugin, load_plugin
from dba_core.registry.options import structure_options
from dba_core.registry.selection import PassedOver, Selection, ask_support

_Key = tuple[Kind, str, str]
_Infos = list[PluginInfo]  # inside the class, `list` is the method


class Registry:
    """All plugins of some distributions (those of the interpreter's path when none are given)."""

    def __init__(self, *, distributions: Iterable[Distribution] | None = None) -> None:
        self._distributions = distributions
        self._loaded: dict[_Key, LoadedPlugin | PluginError] = {}
        self._registered: dict[_Key, PluginInfo] = {}

    @classmethod
    @functools.cache
    def default(cls) -> Registry:
        """The registry of this process, read once."""
        return cls()

    @functools.cached_property
    def _discovery(self) -> Discovery:
        found = importlib.metadata.distributions() if self._distributions is None else self._distributions
        return discover(found)

    @functools.cached_property
    def _auto_order(self) -> AutoOrder:
        return read_auto_order(self._discovery.orders)

    @property
    def problems(self) -> tuple[str, ...]:
        """Distributions whose metadata cannot be read, with the reason."""
        return self._discovery.problems

    def list(self, kind: Kind | None = None) -> _Infos:
        """Every plugin, in the order of the kinds, then by name. Imports nothing."""
        kinds = KINDS if kind is None else (self._known_kind(kind),)
        return [self._with_problem(info) for each in kinds for info in self._infos(each)]

    def load(self, kind: Kind, name: str, *, distribution: str | None = None) -> LoadedPlugin:
        """Import the plugin `name` or `distribution:name`. Raises PluginError with the reason against it.

        `distribution` settles a name that several distributions use.
        """
        return self._load(self._find(kind, name, prefer=distribution))

    def register(
        self, kind: Kind, plugin: Any, *, distribution: str = "local", version: str = "0"
    ) -> LoadedPlugin:
        """Add a plugin made in code. Raises PluginError, and adds nothing, if it is none or known."""
        self._known_kind(kind)
        stated = contain(lambda: plugin.name)
        name = stated if isinstance(stated, str) else "unnamed"
        module = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
        info = PluginInfo(kind=kind, name=name, distribution=distribution, version=version, module=module)
        problem = name_problem(name)
        if problem is not None:
            raise PluginError(f"this {kind} cannot be registered: {problem}")
        loaded = check_plugin(info, plugin)
        if any(_key(other) == _key(info) for other in self._infos(kind)):
            raise PluginError(
                f"{kind} {info.qualified!r} is there already; give the plugin another name or distribution"
            )
        self._registered[_key(info)] = info
        self._loaded[_key(info)] = loaded
        return loaded

    def select(self, kind: Kind, choice: str | PluginChoice, request: Request) -> Selection:
        """Choose a plugin for `request`: the one that is named, or with `auto` the first that supports it.

        Raises PluginError (missing, broken, ambiguous), ConfigError (options), UnsupportedError (reasons).
        """
        wanted = PluginChoice(choice) if isinstance(choice, str) else choice
        if wanted.name == "auto":
            if wanted.options:
                raise ConfigError(
                    f"{wanted.options!r} belongs to no plugin while the name is 'auto'; choose one by name",
                    path=f"plugins.{self._known_kind(kind)}.options",
                )
            return self._first_supporting(self._known_kind(kind), request)
        return self._by_name(kind, wanted, request)

    def _by_name(self, kind: Kind, choice: PluginChoice, request: Request) -> Selection:
        record = choice.record
        loaded = self.load(kind, choice.name, distribution=record.distribution if record else None)
        options = structure_options(loaded, choice.options)
        answer = ask_support(loaded, request, options)
        if isinstance(answer, str):
            raise PluginError(f"{kind} {loaded.info.qualified!r} is broken: {answer}. Choose another {kind}.")
        if not answer.ok:
            raise UnsupportedError(
                f"{kind} {choice.name!r} was chosen by name and cannot run here:", reasons=answer.reasons
            )
        why = "chosen by name"
        if record is not None:
            why = record.why if record.why.startswith("as recorded") else f"as recorded ({record.why})"
        return Selection(
            kind=kind, info=loaded.info, plugin=loaded.plugin, options=options, request=request, why=why
        )

    def _first_supporting(self, kind: Kind, request: Request) -> Selection:
        passed = [PassedOver(name="auto order", problem=problem) for problem in self._auto_order.problems]
        for name, distribution in self._auto_order.of(kind, device=request.device):
            outcome = self._try(kind, name, distribution, request)
            if isinstance(outcome, PassedOver):
                passed.append(outcome)
                continue
            loaded, options = outcome
            return Selection(
                kind=kind,
                info=loaded.info,
                plugin=loaded.plugin,
                options=options,
                request=request,
                why=_auto_why(passed),
                passed_over=tuple(passed),
            )
        raise UnsupportedError(
            f"no {kind} supports the request; choose one by name. Tried {len(passed)} in the order of auto:",
            reasons=tuple(reason for each in passed for reason in each.named_reasons()),
        )

    def _try(
        self, kind: Kind, name: str, distribution: str, request: Request
    ) -> PassedOver | tuple[LoadedPlugin, Any]:
        try:
            loaded = self.load(kind, name, distribution=distribution)
            options = structure_options(loaded, {})
        except DBAError as error:
            return PassedOver(name=name, problem=str(error))
        answer = ask_support(loaded, request, options)
        if isinstance(answer, str):
            return PassedOver(name=name, problem=answer)
        return (loaded, options) if answer.ok else PassedOver(name=name, reasons=answer.reasons)

    def _load(self, info: PluginInfo) -> LoadedPlugin:
        key = _key(info)
        if key not in self._loaded:
            try:
                self._loaded[key] = load_plugin(info)
            except PluginError as error:
                self._loaded[key] = error
        outcome = self._loaded[key]
        if isinstance(outcome, PluginError):
            raise PluginError(str(outcome)) from outcome.__cause__
        return outcome

    def _find(self, kind: Kind, name: str, *, prefer: str | None = None) -> PluginInfo:
        """The one plugin that `name` or `distribution:name` means."""
        known = self._infos(self._known_kind(kind))
        distribution, colon, plain = name.rpartition(":")
        found = [info for info in known if info.name == plain]
        if colon:
            found = [info for info in found if canonical(info.distribution) == canonical(distribution)]
        elif prefer is not None:
            found = [i for i in found if canonical(i.distribution) == canonical(prefer)] or found
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(f"{info.distribution} {info.version}" for info in found)
            ways = " or ".join(repr(info.qualified) for info in found)
            raise PluginError(f"{kind} {name!r} is ambiguous: {owners} both provide it. Write {ways}.")
        names = {info.qualified for info in known} if colon else {info.name for info in known}
        raise PluginError(unknown(kind, name, names | {"auto"}))

    def _infos(self, kind: Kind) -> _Infos:
        infos = [*self._discovery.plugins, *self._registered.values()]
        mine = [info for info in infos if info.kind == kind]
        return sorted(mine, key=lambda info: (info.name, info.distribution))

    def _with_problem(self, info: PluginInfo) -> PluginInfo:
        """The info with what is known against it: a failed load, a name that another one uses too."""
        outcome = self._loaded.get(_key(info))
        if isinstance(outcome, PluginError):
            return attrs.evolve(info, problem=str(outcome))
        others = [i for i in self._infos(info.kind) if i.name == info.name and _key(i) != _key(info)]
        if info.problem is None and others:
            owners = ", ".join(other.distribution for other in others)
            problem = f"{owners} provides this name too: choose it as {info.qualified!r}"
            return attrs.evolve(info, problem=problem)
        return info

    def _known_kind(self, kind: Kind) -> Kind:
        if kind not in KINDS:
            raise PluginError(unknown("plugin kind", kind, KINDS))
        return kind


def _key(info: PluginInfo) -> _Key:
    return info.kind, canonical(info.distribution), info.name


def _auto_why(passed: list[PassedOver]) -> str:
    if not passed:
        return "auto: first in the order, supports the request"
    return f"auto: first that supports the request, after {', '.join(each.name for each in passed)}"
