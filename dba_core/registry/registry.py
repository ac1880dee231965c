"""The registry: what is installed, loaded only when asked for, chosen with reasons.

The order in which `auto` tries plugins comes from the entry-point group `dba.auto_order`: an entry point
names a mapping kind -> names, best first, or kind -> {device type: names} where the best one depends on the
device ("*" stands for all others). Ours comes first, then other distributions' by name. It is read for
`auto` only, because that imports the modules which hold the mappings.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution
from typing import Any, TypeAlias

import attrs

from dba_core.contracts import Kind, Request, Support
from dba_core.distribution import canonical, is_ours
from dba_core.errors import DBAError, DeprecatedContractWarning, PluginError, UnsupportedError, unknown
from dba_core.kinds import KINDS, with_auto
from dba_core.registry.catalogue import Access, Catalogue, Key, key_of
from dba_core.registry.choice import How, PluginChoice
from dba_core.registry.contain import contain, kept_surroundings
from dba_core.registry.discovery import PluginInfo, name_problem
from dba_core.registry.plugin_loading import (
    LoadedPlugin,
    check_plugin,
    load_plugin,
    refuse_options_of_auto,
    structure_options,
)
from dba_core.registry.selection import PassedOver, Selection, ask_support
from dba_core.registry.trace import Trace

#: Stands for every device that has no order of its own.
_ANY_DEVICE = "*"
#: kind -> device type -> names, best first.
_Mapping: TypeAlias = dict[Kind, dict[str, tuple[str, ...]]]
#: What each distribution lists, ours first, and what could not be read.
_Orders: TypeAlias = tuple[list[tuple[str, _Mapping]], list[str]]
_Infos = list[PluginInfo]  # inside the class, `list` is the method


class Registry:
    """All plugins of some distributions (those of the interpreter's path when none are given)."""

    def __init__(
        self,
        *,
        distributions: Iterable[Distribution] | None = None,
        access: Access | None = None,
        trace: Trace | None = None,
    ) -> None:
        """access: which plugins may be used; None: all. trace: where imports and calls are noted."""
        self.access = Access() if access is None else access
        self.trace = Trace() if trace is None else trace
        self._catalogue = Catalogue(distributions, self.access)
        self._loaded: dict[Key, LoadedPlugin | PluginError] = {}

    def __repr__(self) -> str:
        plugins = self._catalogue.everything
        counts = ", ".join(f"{sum(info.kind == kind for info in plugins)} {kind}" for kind in KINDS)
        lists = [f"blocked {', '.join(self.access.blocked)}"] if self.access.blocked else []
        if self.access.allowed is not None:
            lists.append(f"allowed {', '.join(self.access.allowed)} only")
        return f"<Registry: {'; '.join([counts, f'{len(self._loaded)} loaded', *lists])}>"

    @classmethod
    @functools.cache
    def default(cls) -> Registry:
        """The registry of this process, read once, under the allow list DBA_PLUGINS_ALLOW."""
        return cls(access=Access.from_environment(os.environ))

    @functools.cached_property
    def _orders(self) -> _Orders:
        return _read_orders(self._catalogue.orders)

    def auto_order(self, kind: Kind, *, device: str) -> tuple[tuple[str, str], ...]:
        """The plugins that `auto` tries on this device ("cuda:0"), best first, as (name, distribution that
        lists it).
        """
        found: dict[tuple[str, str], None] = {}
        for distribution, mapping in self._orders[0]:
            by_device = mapping.get(kind, {})
            names = by_device.get(device.partition(":")[0], by_device.get(_ANY_DEVICE, ()))
            found.update({(name, distribution): None for name in names})
        if not KINDS[kind].tries_all:
            return tuple(found)
        known = {(name, canonical(distribution)) for name, distribution in found}
        rest = ((info.name, info.distribution) for info in self._catalogue.infos(kind))
        return (*found, *((name, owner) for name, owner in rest if (name, canonical(owner)) not in known))

    @property
    def auto_problems(self) -> tuple[str, ...]:
        """The orders of `auto` that cannot be read, with the reason."""
        return tuple(self._orders[1])

    @property
    def problems(self) -> tuple[str, ...]:
        """Distributions whose metadata cannot be read, with the reason."""
        return self._catalogue.problems

    def list(self, kind: Kind | None = None) -> _Infos:
        """Every plugin, in the order of the kinds, then by name. Imports nothing."""
        kinds = tuple(KINDS) if kind is None else (kind,)
        return [self._with_problem(info) for each in kinds for info in self._catalogue.infos(each)]

    def load(self, kind: Kind, name: str, *, distribution: str | None = None) -> LoadedPlugin:
        """Import the plugin `name` or `distribution:name`. Raises PluginError with the reason against it.

        `distribution` settles a name that several distributions use.
        """
        return self._load(self._catalogue.find(kind, name, prefer=distribution))

    def find(self, kind: Kind, name: str, *, distribution: str | None = None) -> PluginInfo:
        """What `load` would import. Raises PluginError for a name that is unknown or ambiguous."""
        return self._catalogue.find(kind, name, prefer=distribution)

    def register(
        self, kind: Kind, plugin: Any, *, distribution: str = "local", version: str = "0"
    ) -> LoadedPlugin:
        """Add a plugin made in code. Raises PluginError, and adds nothing, if it is none or known."""
        self._catalogue.check_kind(kind)
        info = PluginInfo.of_object(kind, plugin, distribution=distribution, version=version)
        problem = name_problem(info.name)
        if problem is not None:
            raise PluginError(f"this {kind} cannot be registered: {problem}")
        loaded = check_plugin(info, plugin)
        if self._catalogue.has(info):
            raise PluginError(
                f"{kind} {info.qualified!r} is there already; give the plugin another name or distribution"
            )
        self._catalogue.add(info)
        self._loaded[key_of(info)] = loaded
        _warn_of(loaded)
        return loaded

    def select(self, kind: Kind, choice: str | PluginChoice, request: object) -> Selection:
        """Choose a plugin for `request`: the one that is named, or with `auto` the first that supports it.

        Raises PluginError (missing, broken, ambiguous), ConfigError (options), UnsupportedError (reasons).
        """
        self._catalogue.infos(kind)
        wanted = PluginChoice(choice) if isinstance(choice, str) else choice
        if wanted.name == "auto":
            if kind not in with_auto():
                raise PluginError(f"there is no order of auto for a {kind}; choose one by name")
            refuse_options_of_auto(kind, wanted.options)
            return self._first_supporting(kind, request)
        return self._by_name(kind, wanted, request)

    def _by_name(self, kind: Kind, choice: PluginChoice, request: object) -> Selection:
        record = choice.record
        loaded = self.load(kind, choice.name, distribution=record.distribution if record else None)
        options = structure_options(loaded, choice.options)
        answer = self.ask(loaded, request, options)
        if isinstance(answer, str):
            raise PluginError(f"{answer}. Choose another {kind}.")
        if not answer.ok:
            raise UnsupportedError(
                f"{kind} {choice.name!r} was chosen by name and cannot run here:", reasons=answer.reasons
            )
        if record is None:
            return self._selection(loaded, options, request, "named", "chosen by name")
        why = record.why if record.how == "recorded" else f"as recorded ({record.why})"
        return self._selection(loaded, options, request, "recorded", why)

    def ask(self, loaded: LoadedPlugin, request: object, options: Any) -> Support | str:
        """The plugin's answer to `supports()`, or the problem with it."""
        return ask_support(loaded, request, options, trace=self.trace)

    def _first_supporting(self, kind: Kind, request: object) -> Selection:
        """The first, or the one after it where the first stands back for that one."""
        passed = [
            PassedOver(name="auto order", state="broken", problem=problem) for problem in self.auto_problems
        ]
        held: tuple[LoadedPlugin, Any, Support] | None = None
        device = request.device if isinstance(request, Request) else "cpu"
        for name, distribution in self.auto_order(kind, device=device):
            outcome = self._try(kind, name, distribution, request)
            if isinstance(outcome, PassedOver):
                if held is not None:
                    break
                passed.append(outcome)
                continue
            loaded, options, answer = outcome
            if held is not None:
                name, reasons = held[0].info.name, held[2].next_is_better
                passed.append(PassedOver(name=name, state="stood back", reasons=reasons))
            elif answer.next_is_better:
                held = outcome
                continue
            return self._selection(loaded, options, request, "auto", _auto_why(passed), passed)
        if held is not None:
            loaded, options, _ = held
            return self._selection(loaded, options, request, "auto", _auto_why(passed), passed)
        if passed and all(each.state == "blocked" for each in passed):
            refused = "; ".join(f"{each.name}: {each.problem}" for each in passed)
            raise PluginError(
                f"every {kind} in the order of auto is refused ({refused}). Allow one of them, or choose "
                f"another {kind} by name."
            )
        raise UnsupportedError(
            f"no {kind} supports the request; choose one by name. Tried {len(passed)} in the order of auto:",
            reasons=tuple(reason for each in passed for reason in each.named_reasons()),
        )

    def _selection(
        self,
        loaded: LoadedPlugin,
        options: Any,
        request: object,
        how: How,
        why: str,
        passed: Sequence[PassedOver] = (),
    ) -> Selection:
        return Selection(
            info=loaded.info,
            plugin=loaded.plugin,
            deprecation=loaded.deprecation,
            options=options,
            request=request,
            how=how,
            why=why,
            passed_over=tuple(passed),
            trace=self.trace,
        )

    def _try(
        self, kind: Kind, name: str, distribution: str, request: object
    ) -> PassedOver | tuple[LoadedPlugin, Any, Support]:
        try:
            info = self._catalogue.find(kind, name, prefer=distribution)
            refusal = self.access.refusal(info)
            if refusal is not None:
                return PassedOver(name=name, state="blocked", problem=refusal)
            loaded = self._load(info)
            options = structure_options(loaded, {})
        except DBAError as error:
            return PassedOver(name=name, state="broken", problem=str(error))
        answer = self.ask(loaded, request, options)
        if isinstance(answer, str):
            return PassedOver(name=name, state="broken", problem=answer)
        if not answer.ok:
            return PassedOver(name=name, state="declined", reasons=answer.reasons)
        return loaded, options, answer

    def _load(self, info: PluginInfo) -> LoadedPlugin:
        refusal = self.access.refusal(info)
        if refusal is not None:
            raise PluginError(
                f"{info.who} may not be used: it is {refusal}. Change that, or choose another {info.kind}."
            )
        key = key_of(info)
        if key not in self._loaded:
            try:
                self._loaded[key] = loaded = load_plugin(info, trace=self.trace)
            except PluginError as error:
                self._loaded[key] = error
            else:
                _warn_of(loaded)
        outcome = self._loaded[key]
        if isinstance(outcome, PluginError):
            raise PluginError(str(outcome)) from outcome.__cause__
        return outcome

    def _with_problem(self, info: PluginInfo) -> PluginInfo:
        """The info with what is known against it: what metadata say, or a failed load."""
        outcome = self._loaded.get(key_of(info))
        if isinstance(outcome, PluginError) and self.access.refusal(info) is None:
            return attrs.evolve(info, problem=str(outcome))
        return self._catalogue.shown(info)


def _warn_of(loaded: LoadedPlugin) -> None:
    """Once for each plugin and registry."""
    if loaded.deprecation is not None:
        text = f"{loaded.info.who}: {loaded.deprecation}"
        warnings.warn(text, DeprecatedContractWarning, stacklevel=4)


def _auto_why(passed: list[PassedOver]) -> str:
    if not passed:
        return "auto: first in the order, supports the request"
    for each in passed:
        if each.state == "stood back":
            return f"auto: better for the request than {each.name}, which supports it too"
    return f"auto: first that supports the request, after {', '.join(each.name for each in passed)}"


def _read_orders(orders: Iterable[tuple[str, str]]) -> _Orders:
    """Import the mappings of `orders` (distribution, reference), ours first; and what cannot be read."""
    listed: list[tuple[str, _Mapping]] = []
    problems: list[str] = []
    for distribution, reference in sorted(orders, key=_rank):
        with kept_surroundings():
            mapping = contain(lambda named=reference: _checked(_import(named)))  # type: ignore[misc]
        if isinstance(mapping, dict):
            listed.append((distribution, mapping))
        else:
            problems.append(f"the order {reference!r} of {distribution} cannot be used: {mapping}")
    return listed, problems


def _rank(order: tuple[str, str]) -> tuple[bool, str, str]:
    distribution, reference = order
    return not is_ours(distribution), canonical(distribution), reference


def _checked(mapping: Any) -> _Mapping | str:
    """The mapping as plain data, or why it is none. A foreign one may raise anything."""
    problem = _form_problem(mapping)
    if problem is not None:
        return problem
    return {
        kind: {device: tuple(names) for device, names in _by_device(mapping[kind]).items()}
        for kind in with_auto()
        if kind in mapping
    }


def _by_device(listed: Any) -> Mapping[Any, Any]:
    return listed if isinstance(listed, Mapping) else {_ANY_DEVICE: listed}


def _import(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def _form_problem(mapping: Any) -> str | None:
    if not isinstance(mapping, Mapping):
        return f"it is {mapping!r}, no mapping of kinds to names"
    for kind, listed in mapping.items():
        if kind not in with_auto():
            return unknown("plugin kind", str(kind), with_auto())
        for device, names in _by_device(listed).items():
            named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if not named or not isinstance(device, str):
                return f"{kind} has {listed!r}; allowed: a list of plugin names, or one per device type"
    return None
