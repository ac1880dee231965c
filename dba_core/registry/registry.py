"""The registry: what is installed and what a name means, loaded only when asked for, chosen with reasons."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Iterable
from importlib.metadata import Distribution
from typing import Any, TypeAlias

import attrs

from dba_core.contracts import Kind, Reason, Request, Support
from dba_core.distribution import canonical
from dba_core.errors import DBAError, DeprecatedContractWarning, PluginError, UnsupportedError, unknown
from dba_core.kinds import KINDS, with_auto
from dba_core.registry.access import Access
from dba_core.registry.choice import PluginChoice
from dba_core.registry.discovery import Discovery, PluginInfo, discover, name_problem
from dba_core.registry.plugin_loading import (
    ANY_DEVICE,
    AutoOrder,
    LoadedPlugin,
    check_plugin,
    load_plugin,
    read_orders,
    refuse_options_of_auto,
    structure_options,
)
from dba_core.registry.selection import PassedOver, Selection, ask_support
from dba_core.registry.trace import Trace

_Infos: TypeAlias = list[PluginInfo]  # inside the class, `list` is the method


class Registry:
    """All plugins of some distributions (those of the interpreter's path when none are given), and those that
    were added.
    """

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
        self._distributions = distributions
        self._added: _Infos = []
        self._loaded: dict[PluginInfo, LoadedPlugin | PluginError] = {}

    def __repr__(self) -> str:
        plugins = self._everything
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
    def _discovery(self) -> Discovery:
        found = importlib.metadata.distributions() if self._distributions is None else self._distributions
        return discover(found)

    @property
    def _everything(self) -> _Infos:
        """Every plugin of every kind, whatever the lists say."""
        return [*self._discovery.plugins, *self._added]

    @functools.cached_property
    def _orders(self) -> tuple[list[tuple[str, AutoOrder]], list[str]]:
        """Read for `auto` only, because that imports the modules which hold the mappings."""
        return read_orders(order for order in self._discovery.orders if self._may_import(order[0]))

    def _may_import(self, distribution: str) -> bool:
        """Not where every plugin of it is refused, nor outside of an allow list."""
        own = [i for i in self._discovery.plugins if canonical(i.distribution) == canonical(distribution)]
        if not own:
            return self.access.allowed is None
        return any(self.access.refusal(info) is None for info in own)

    def auto_order(self, kind: Kind, *, device: str) -> tuple[tuple[str, str], ...]:
        """The plugins that `auto` tries on this device ("cuda:0"), best first, as (name, distribution that
        lists it).
        """
        found: dict[tuple[str, str], None] = {}
        for distribution, order in self._orders[0]:
            by_device = order.get(kind, {})
            names = by_device.get(device.partition(":")[0], by_device.get(ANY_DEVICE, ()))
            found.update({(name, distribution): None for name in names})
        if KINDS[kind].auto != "all":
            return tuple(found)
        known = {(name, canonical(distribution)) for name, distribution in found}
        rest = ((info.name, info.distribution) for info in self._of(kind))
        return (*found, *((name, owner) for name, owner in rest if (name, canonical(owner)) not in known))

    @property
    def auto_problems(self) -> tuple[str, ...]:
        """The orders of `auto` that cannot be read, with the reason."""
        return tuple(self._orders[1])

    @property
    def problems(self) -> tuple[str, ...]:
        """Distributions whose metadata cannot be read, with the reason."""
        return self._discovery.problems

    def _of(self, kind: Kind) -> _Infos:
        """Those of one kind, by name. Raises PluginError for an unknown kind, and where the allow or block
        list names what is not there.
        """
        _check_kind(kind)
        self.access.check(self._everything)
        return sorted(
            (info for info in self._everything if info.kind == kind),
            key=lambda info: (info.name, info.distribution),
        )

    def list(self, kind: Kind | None = None) -> _Infos:
        """Every plugin, in the order of the kinds, then by name. Imports nothing."""
        kinds = tuple(KINDS) if kind is None else (kind,)
        return [self._with_problem(info) for each in kinds for info in self._of(each)]

    def _with_problem(self, info: PluginInfo) -> PluginInfo:
        """With what is known against it: not allowed, a failed load, or a name that another one has too."""
        outcome, problem = self._loaded.get(info), self.access.refusal(info)
        if problem is None and isinstance(outcome, PluginError):
            problem = str(outcome)
        if problem is None and info.problem is None:
            owners = [
                other.distribution
                for other in self._of(info.kind)
                if other.name == info.name and other != info and not self.access.refusal(other)
            ]
            if owners:
                problem = f"{', '.join(owners)} provides this name too: choose it as {info.qualified!r}"
        return info if problem is None else attrs.evolve(info, problem=problem)

    def find(self, kind: Kind, name: str, *, distribution: str | None = None) -> PluginInfo:
        """The one plugin that `name` or `distribution:name` means; a blocked one only where no other does.
        Imports nothing.

        distribution: settles a name that several use. Raises PluginError for an unknown or ambiguous name.
        """
        known = self._of(kind)
        owner, colon, plain = name.rpartition(":")
        found = [info for info in known if info.name == plain]
        if colon:
            found = [info for info in found if canonical(info.distribution) == canonical(owner)]
        elif distribution is not None:
            found = [i for i in found if canonical(i.distribution) == canonical(distribution)] or found
        found = [info for info in found if self.access.refusal(info) is None] or found
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(f"{info.distribution} {info.version}" for info in found)
            ways = " or ".join(repr(info.qualified) for info in found)
            raise PluginError(f"{kind} {name!r} is ambiguous: {owners} both provide it. Write {ways}.")
        raise PluginError(self._not_found(kind, name))

    def _not_found(self, kind: Kind, name: str) -> str:
        known, (owner, colon, _) = self._of(kind), name.rpartition(":")
        names = {info.qualified if colon else info.name for info in known}
        names |= {"auto"} if kind in with_auto() else set()
        allowed = ", ".join(sorted(names))
        if colon and any(info.name == owner for info in known):
            return (
                f"{name!r} is no {kind}. Options are key=value: {kind}={owner}:KEY=VALUE. Allowed: {allowed}."
            )
        kinds = [each for each in KINDS if any(name in (i.name, i.qualified) for i in self._of(each))]
        if not kinds:
            return unknown(kind, name, names)
        ways = " or ".join(KINDS[each].chosen_by(name) for each in kinds)
        return (
            f"{name!r} is no {kind} but a {' and a '.join(kinds)}: choose it with {ways}. "
            f"Allowed for {kind}: {allowed}."
        )

    def load(self, kind: Kind, name: str, *, distribution: str | None = None) -> LoadedPlugin:
        """Import the plugin `name` or `distribution:name`. Raises PluginError with the reason against it.

        `distribution` settles a name that several distributions use.
        """
        return self._load(self.find(kind, name, distribution=distribution))

    def _load(self, info: PluginInfo) -> LoadedPlugin:
        refusal = self.access.refusal(info)
        if refusal is not None:
            raise PluginError(
                f"{info.who} may not be used: it is {refusal}. Change that, or choose another {info.kind}."
            )
        if info not in self._loaded:
            try:
                self._loaded[info] = loaded = load_plugin(info, trace=self.trace)
            except PluginError as error:
                self._loaded[info] = error
            else:
                _warn_of(loaded)
        outcome = self._loaded[info]
        if isinstance(outcome, PluginError):
            raise PluginError(str(outcome)) from outcome.__cause__
        return outcome

    def register(
        self, kind: Kind, plugin: Any, *, distribution: str = "local", version: str = "0"
    ) -> LoadedPlugin:
        """Add a plugin made in code. Raises PluginError, and adds nothing, if it is none or known."""
        _check_kind(kind)
        info = PluginInfo.of_object(kind, plugin, distribution=distribution, version=version)
        problem = name_problem(info.name)
        if problem is not None:
            raise PluginError(f"this {kind} cannot be registered: {problem}")
        loaded = check_plugin(info, plugin)
        if any(other.key == info.key for other in self._everything):
            raise PluginError(
                f"{kind} {info.qualified!r} is there already; give the plugin another name or distribution"
            )
        self._added.append(info)
        self._loaded[info] = loaded
        _warn_of(loaded)
        return loaded

    def select(self, kind: Kind, choice: str | PluginChoice, request: object) -> Selection:
        """Choose a plugin for `request`: the one that is named, or with `auto` the first that supports it.

        Raises PluginError (missing, broken, ambiguous), ConfigError (options), UnsupportedError (reasons).
        """
        self._of(kind)
        wanted = PluginChoice(choice) if isinstance(choice, str) else choice
        if wanted.name != "auto":
            return self._by_name(kind, wanted, request)
        if kind not in with_auto():
            raise PluginError(f"there is no order of auto for a {kind}; choose one by name")
        refuse_options_of_auto(kind, wanted.options)
        return self._first_supporting(kind, request)

    def ask(self, loaded: LoadedPlugin, request: object, options: Any) -> Support | str:
        """The plugin's answer to `supports()`, or the problem with it."""
        return ask_support(loaded, request, options, trace=self.trace)

    def _asked(
        self, kind: Kind, choice: PluginChoice, request: object, *, distribution: str | None
    ) -> tuple[Selection, Support | str]:
        """The plugin with its options, as one chosen by name, and what it answers."""
        loaded = self.load(kind, choice.name, distribution=distribution)
        selection = Selection(
            info=loaded.info,
            plugin=loaded.plugin,
            options=structure_options(loaded, choice.options),
            request=request,
            how="named",
            why="chosen by name",
            trace=self.trace,
        )
        return selection, self.ask(loaded, request, selection.options)

    def _by_name(self, kind: Kind, choice: PluginChoice, request: object) -> Selection:
        record = choice.record
        distribution = record.distribution if record else None
        selection, answer = self._asked(kind, choice, request, distribution=distribution)
        if isinstance(answer, str):
            raise PluginError(f"{answer}. Choose another {kind}.")
        if not answer.ok:
            raise UnsupportedError(
                f"{kind} {choice.name!r} was chosen by name and cannot run here:", reasons=answer.reasons
            )
        if record is None:
            return selection
        why = record.why if record.how == "recorded" else f"as recorded ({record.why})"
        return attrs.evolve(selection, how="recorded", why=why)

    def _first_supporting(self, kind: Kind, request: object) -> Selection:
        """The first, or the one after it where the first stands back for that one."""
        passed = [
            PassedOver(name="auto order", state="broken", problem=problem) for problem in self.auto_problems
        ]
        chosen: Selection | None = None
        reasons: tuple[Reason, ...] = ()
        device = request.device if isinstance(request, Request) else "cpu"
        for name, distribution in self.auto_order(kind, device=device):
            outcome = self._try(kind, name, distribution, request)
            if isinstance(outcome, PassedOver):
                if chosen is not None:
                    break
                passed.append(outcome)
                continue
            if chosen is not None:
                passed.append(PassedOver(name=chosen.name, state="stood back", reasons=reasons))
                chosen = outcome[0]
                break
            chosen, reasons = outcome
            if not reasons:
                break
        if chosen is not None:
            return attrs.evolve(chosen, how="auto", why=_auto_why(passed), passed_over=tuple(passed))
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

    def _try(
        self, kind: Kind, name: str, distribution: str, request: object
    ) -> PassedOver | tuple[Selection, tuple[Reason, ...]]:
        """The plugin, and why the next one would be better; or what is against it."""
        try:
            refusal = self.access.refusal(self.find(kind, name, distribution=distribution))
            if refusal is not None:
                return PassedOver(name=name, state="blocked", problem=refusal)
            selection, answer = self._asked(kind, PluginChoice(name), request, distribution=distribution)
        except DBAError as error:
            return PassedOver(name=name, state="broken", problem=str(error))
        if isinstance(answer, str):
            return PassedOver(name=name, state="broken", problem=answer)
        if not answer.ok:
            return PassedOver(name=name, state="declined", reasons=answer.reasons)
        return selection, answer.next_is_better


def _check_kind(kind: Kind) -> None:
    if kind not in KINDS:
        raise PluginError(unknown("plugin kind", kind, KINDS))


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
