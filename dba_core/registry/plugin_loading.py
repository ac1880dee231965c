"""From metadata to the plugin and its options: import its module, let pluggy call its hook, check the answer.

A plugin is taken whole or not at all: every plugin gets a plugin manager of its own, so that a broken one
leaves nothing behind in another's. Of contract numbers the library's own N is taken, and for a time N-1, with
a warning until when. Options are plain data from TOML or a text (`kind=name:key=value`); the converter is the
configuration's, so types are exact here too.

The order in which `auto` tries plugins comes from the entry-point group `dba.auto_order`: an entry point
names a mapping kind -> names, best first, or kind -> {device type: names} where the best one depends on the
device ("*" stands for all others).
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import attrs
import pluggy

from dba_core import hookspecs
from dba_core.contracts import AnyPlugin, Kind
from dba_core.distribution import canonical, is_ours
from dba_core.errors import ConfigError, PluginError, unknown
from dba_core.kinds import KINDS, with_auto
from dba_core.registry.contain import Failure, contain, kept_surroundings, shown
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.trace import Trace
from dba_core.serialization.values import UnreadableTypeError, structure, unstructure

_FACTS = ("name", "contract", "summary", "options_class")
_FIELD_TYPES = (
    "int, float, str, bool, Literal, list[X], tuple[X, ...], dict[str, X] and attrs classes of these, and "
    "X | None"
)
#: Stands in an order of `auto` for every device that has no names of its own.
ANY_DEVICE = "*"
#: kind -> device type -> names, best first.
AutoOrder: TypeAlias = dict[Kind, dict[str, tuple[str, ...]]]
#: Characters of a contract number that errors show.
_SHOWN = 24


@attrs.frozen(kw_only=True, eq=False)
class LoadedPlugin:
    """A plugin that was imported and found to keep the form of its contract."""

    info: PluginInfo
    plugin: AnyPlugin

    @property
    def deprecation(self) -> str | None:
        """What is said about one that was written for the previous contract; None for the current one."""
        row, contract = KINDS[self.info.kind], self.plugin.contract
        if contract == row.contract:
            return None
        return (
            f"it was written for {row.name} contract {contract}, which dba {row.previous_until} drops; this "
            f"dba has contract {row.contract}: install a newer version of the plugin before you update dba"
        )


def load_plugin(info: PluginInfo, *, trace: Trace) -> LoadedPlugin:
    """Import and check one plugin. Raises PluginError with the reason; the foreign exception is its cause."""
    if info.problem is not None:
        raise PluginError(_broken(info, info.problem))
    with kept_surroundings():
        outcome = contain(lambda: _import_and_call(info, trace))
    if isinstance(outcome, Failure):
        raise PluginError(_broken(info, f"its hook cannot be loaded ({outcome})")) from outcome.error
    if isinstance(outcome, str):
        raise PluginError(_broken(info, outcome))
    return check_plugin(info, outcome[0])


def check_plugin(info: PluginInfo, plugin: Any) -> LoadedPlugin:
    """A LoadedPlugin if the object keeps the form of the contract, else PluginError with what it lacks."""
    with kept_surroundings():
        problem = contain(lambda: _form_problem(info, plugin))
    if isinstance(problem, Failure):
        raise PluginError(_broken(info, f"reading it raised {problem}")) from problem.error
    if problem is not None:
        raise PluginError(_broken(info, problem))
    return LoadedPlugin(info=info, plugin=plugin)


def _broken(info: PluginInfo, reason: str) -> str:
    return (
        f"{info.who} ({info.module}) cannot be used: {reason}. Repair or uninstall {info.distribution}, or "
        f"choose another {info.kind}."
    )


def _import_and_call(info: PluginInfo, trace: Trace) -> tuple[Any] | str:
    """What the hook returned (in a tuple), or the problem."""
    before = len(sys.modules)
    with trace.step(info, "import") as step:
        owner = _imported(info.module)
        step.what = f"{info.module.partition(':')[0]} ({len(sys.modules) - before} new modules)"
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(owner, name=info.qualified)
    manager.check_pending()
    hook = KINDS[info.kind].hook
    callers = {caller.name: caller for caller in manager.get_hookcallers(owner) or []}
    if hook not in callers:
        return f"{info.module} implements no hook {hook}; decorate a function {hook}() with dba_core.hookimpl"
    with trace.step(info, "hook") as step:
        returned = callers[hook]()
        step.what = f"{hook}() returned {', '.join(type(each).__name__ for each in returned) or 'nothing'}"
    if len(returned) != 1:
        return f"its hook {hook}() returned nothing; return the plugin object"
    return (returned[0],)


def _imported(reference: str) -> Any:
    """The module `pkg.mod`, or the object `pkg.mod:attr`."""
    module, _, attribute = reference.partition(":")
    owner = importlib.import_module(module)
    return functools.reduce(getattr, attribute.split("."), owner) if attribute else owner


def _form_problem(info: PluginInfo, plugin: Any) -> str | None:
    """What the returned object lacks to be a plugin of this kind, None when nothing."""
    if isinstance(plugin, type):
        return f"its hook returned the class {plugin.__name__}; return an instance: {plugin.__name__}()"
    calls = KINDS[info.kind].calls
    missing = [member for member in (*_FACTS, *calls) if not hasattr(plugin, member)]
    if missing:
        return f"its hook returned {type(plugin).__name__!r}, no plugin: it lacks {', '.join(missing)}"
    if plugin.name != info.name:
        return f"it calls itself {shown(plugin.name)}, its entry point {info.name!r}; both must be the same"
    problem = _contract_problem(info.kind, plugin.contract)
    if problem is not None:
        return problem
    if not (isinstance(plugin.options_class, type) and attrs.has(plugin.options_class)):
        return f"its options_class is {shown(plugin.options_class)}, no attrs class (NoOptions takes none)"
    plugin.options_class()
    if not isinstance(plugin.summary, str):
        return f"its summary is {shown(plugin.summary)}, no text"
    uncallable = [member for member in calls if not callable(getattr(plugin, member))]
    return f"its {' and '.join(uncallable)} cannot be called" if uncallable else None


def accepts(kind: Kind, contract: object) -> bool:
    """Whether a plugin that states this contract number is taken."""
    return type(contract) is int and (contract == KINDS[kind].contract or _is_previous(kind, contract))


def contract_text(contract: object) -> str:
    """A contract number in an error text, a long one shortened."""
    text = shown(contract)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _contract_problem(kind: Kind, contract: Any) -> str | None:
    """Why a plugin that states this number is refused, and what to do; None when it is taken."""
    if accepts(kind, contract):
        return None
    number, until = KINDS[kind].contract, KINDS[kind].previous_until
    if type(contract) is not int:
        return f"its contract is {shown(contract)}; contract must be a whole number, here {number}"
    if contract > number:
        todo = "install a newer dba, or an older version of the plugin"
    else:
        todo = "install a newer version of the plugin, or an older dba"
    previous = f" and, until dba {until}, contract {number - 1}" if until is not None else ""
    return (
        f"it was written for {kind} contract {contract_text(contract)}, this dba has contract "
        f"{number}{previous}: {todo}"
    )


def _is_previous(kind: Kind, contract: int) -> bool:
    return KINDS[kind].previous_until is not None and contract == KINDS[kind].contract - 1


def structure_options(loaded: LoadedPlugin, options: Mapping[str, Any]) -> Any:
    """An object of the plugin's options class. Raises ConfigError under `plugins.KIND.options`."""
    info, options_class = loaded.info, loaded.plugin.options_class
    path = f"plugins.{info.kind}.options"
    allowed = [field.name for field in attrs.fields(options_class) if field.init]
    for key in options:
        if not allowed:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ConfigError(
                f"{info.kind} {info.name!r} takes no options, got {given}; leave them out", path=path
            )
        if key not in allowed:
            raise ConfigError(
                unknown(f"option of {info.kind} {info.name!r}:", key, allowed), path=f"{path}.{key}"
            )
    with kept_surroundings():
        built = contain(lambda: structure(dict(options), options_class))
    if not isinstance(built, Failure):
        return built
    if isinstance(built.error, UnreadableTypeError):
        raise PluginError(
            f"{info.who} cannot be used: field {built.error.path!r} of its options class is of type "
            f"{built.error.message}; allowed: {_FIELD_TYPES}. Report it to the plugin's author."
        ) from built.error
    if isinstance(built.error, ConfigError):
        raise built.error.under(path)
    raise PluginError(f"the options of {info.who} cannot be read: {built}") from built.error


def refuse_options_of_auto(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options without a plugin that they belong to."""
    if options:
        raise ConfigError(
            f"{dict(options)!r} belongs to no plugin while the name is 'auto'; choose one by name",
            path=f"plugins.{kind}.options",
        )


def options_to_dict(options: Any) -> dict[str, Any]:
    """Plain data that `structure_options` reads back to equal options."""
    plain: dict[str, Any] = unstructure(options)
    return plain


def read_orders(orders: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, AutoOrder]], list[str]]:
    """Import the mappings of `orders` (distribution, reference): ours first, then by distribution; and what
    cannot be read.
    """
    listed: list[tuple[str, AutoOrder]] = []
    problems: list[str] = []
    for distribution, reference in sorted(orders, key=lambda o: (not is_ours(o[0]), canonical(o[0]), o[1])):
        with kept_surroundings():
            order = contain(lambda named=reference: _checked_order(_imported(named)))  # type: ignore[misc]
        if isinstance(order, dict):
            listed.append((distribution, order))
        else:
            problems.append(f"the order {reference!r} of {distribution} cannot be used: {order}")
    return listed, problems


def _checked_order(mapping: Any) -> AutoOrder | str:
    """The mapping as plain data, or why it is none. A foreign one may raise anything."""
    if not isinstance(mapping, Mapping):
        return f"it is {mapping!r}, no mapping of kinds to names"
    order: AutoOrder = {}
    for kind, listed in mapping.items():
        if kind not in with_auto():
            return unknown("plugin kind", str(kind), with_auto())
        order[kind] = {}
        for device, names in (listed if isinstance(listed, Mapping) else {ANY_DEVICE: listed}).items():
            named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if not named or not isinstance(device, str):
                return f"{kind} has {listed!r}; allowed: a list of plugin names, or one per device type"
            order[kind][device] = tuple(names)
    return order
