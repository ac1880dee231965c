"""From metadata to the plugin: import its module, let pluggy validate and call its hook, check the answer.

Called by `Registry.load` and `Registry.register`. A plugin is taken whole or not at all: every plugin gets a
plugin manager of its own, so that a broken one leaves nothing behind in another's.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import attrs
import pluggy

from dba_core import hookspecs
from dba_core.contracts import AnyPlugin
from dba_core.errors import PluginError
from dba_core.kinds import KINDS
from dba_core.registry.contain import Failure, contain, shown
from dba_core.registry.contract import Terms
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.surroundings import kept_surroundings
from dba_core.registry.trace import Trace

_FACTS = ("name", "contract", "summary", "options_class")


@attrs.frozen(kw_only=True, eq=False)
class LoadedPlugin:
    """A plugin that was imported and found to keep the form of its contract.

    deprecation: what is said about one that was written for the previous contract.
    """

    info: PluginInfo
    plugin: AnyPlugin
    deprecation: str | None = None


def load_plugin(info: PluginInfo, *, terms: Terms, trace: Trace) -> LoadedPlugin:
    """Import and check one plugin. Raises PluginError with the reason; the foreign exception is its cause."""
    if info.problem is not None:
        raise PluginError(_broken(info, info.problem))
    with kept_surroundings():
        outcome = contain(lambda: _import_and_call(info, trace))
    if isinstance(outcome, Failure):
        raise PluginError(_broken(info, f"its hook cannot be loaded ({outcome})")) from outcome.error
    if isinstance(outcome, str):
        raise PluginError(_broken(info, outcome))
    return check_plugin(info, outcome[0], terms=terms)


def check_plugin(info: PluginInfo, plugin: Any, *, terms: Terms) -> LoadedPlugin:
    """A LoadedPlugin if the object keeps the form of the contract, else PluginError with what it lacks."""
    with kept_surroundings():
        problem = contain(lambda: _form_problem(info, plugin, terms))
    if isinstance(problem, Failure):
        raise PluginError(_broken(info, f"reading it raised {problem}")) from problem.error
    if problem is not None:
        raise PluginError(_broken(info, problem))
    return LoadedPlugin(
        info=info, plugin=plugin, deprecation=terms[info.kind].deprecation(info.kind, plugin.contract)
    )


def _broken(info: PluginInfo, reason: str) -> str:
    return (
        f"{info.kind} {info.name!r} of {info.distribution} {info.version} ({info.module}) cannot be used: "
        f"{reason}. Repair or uninstall {info.distribution}, or choose another {info.kind}."
    )


def _import_and_call(info: PluginInfo, trace: Trace) -> tuple[Any] | str:
    """What the hook returned (in a tuple), or the problem."""
    owner = _imported(info, trace)
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


def _imported(info: PluginInfo, trace: Trace) -> Any:
    """The module or object that the entry point names."""
    module_name, _, attribute = info.module.partition(":")
    before = len(sys.modules)
    with trace.step(info, "import") as step:
        owner = importlib.import_module(module_name)
        step.what = f"{module_name} ({len(sys.modules) - before} new modules)"
    return functools.reduce(getattr, attribute.split("."), owner) if attribute else owner


def _form_problem(info: PluginInfo, plugin: Any, terms: Terms) -> str | None:
    """What the returned object lacks to be a plugin of this kind, None when nothing."""
    if isinstance(plugin, type):
        return f"its hook returned the class {plugin.__name__}; return an instance: {plugin.__name__}()"
    calls = KINDS[info.kind].calls
    missing = [member for member in (*_FACTS, *calls) if not hasattr(plugin, member)]
    if missing:
        return f"its hook returned {type(plugin).__name__!r}, no plugin: it lacks {', '.join(missing)}"
    if plugin.name != info.name:
        return f"it calls itself {shown(plugin.name)}, its entry point {info.name!r}; both must be the same"
    problem = terms[info.kind].problem(info.kind, plugin.contract)
    if problem is not None:
        return problem
    if not (isinstance(plugin.options_class, type) and attrs.has(plugin.options_class)):
        return f"its options_class is {shown(plugin.options_class)}, no attrs class (NoOptions takes none)"
    plugin.options_class()
    if not isinstance(plugin.summary, str):
        return f"its summary is {shown(plugin.summary)}, no text"
    uncallable = [member for member in calls if not callable(getattr(plugin, member))]
    return f"its {' and '.join(uncallable)} cannot be called" if uncallable else None
