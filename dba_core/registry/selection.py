"""The outcome of choosing a plugin: which one, with what options, why, and which ones were passed over.

Kept by the attention, written to `resolved_config.json`, shown by `dba plugins why`.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from dba_core.contracts import Kind, Reason, Support
from dba_core.registry.choice import How, PluginChoice, PluginRecord
from dba_core.registry.contain import Failure, attributed, contain, kept_surroundings, shown
from dba_core.registry.plugin_loading import LoadedPlugin, options_to_dict
from dba_core.registry.trace import Trace


@attrs.frozen(kw_only=True)
class PassedOver:
    """A plugin that `auto` tried before: it declined the request, it is broken, the user does not want it, or
    it supports the request and stood back for the next one.

    reasons: its own against the request, or for the next one. problem: why it could not be asked.
    """

    name: str
    state: Literal["declined", "broken", "blocked", "stood back"]
    reasons: tuple[Reason, ...] = ()
    problem: str | None = None

    def named_reasons(self) -> tuple[Reason, ...]:
        """The reasons with the plugin's name in the subject; a problem counts as one."""
        if self.state == "blocked":
            allowed, action = "a plugin that may be used", "Change the list, or choose another by name."
            return (Reason(subject=self.name, got=str(self.problem), supported=allowed, action=action),)
        if self.problem is not None:
            return (
                Reason(subject=self.name, got="a problem", supported="a sound plugin", action=self.problem),
            )
        return tuple(attrs.evolve(each, subject=f"{self.name}, {each.subject}") for each in self.reasons)

    def __str__(self) -> str:
        return f"{self.name}: {self.problem or '; '.join(map(str, self.reasons))}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Selection(LoadedPlugin):
    """A chosen plugin, ready to build what it is asked for. how: it came to be chosen; why: for people."""

    options: Any
    request: Any
    how: How
    why: str
    passed_over: tuple[PassedOver, ...] = ()
    trace: Trace = attrs.field(factory=Trace, repr=False)

    @property
    def kind(self) -> Kind:
        return self.info.kind

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def fallbacks(self) -> tuple[PassedOver, ...]:
        """What `auto` would rather have taken; not what the user blocked, nor what stood back."""
        return tuple(each for each in self.passed_over if each.state in ("declined", "broken"))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in options_to_dict(self.options).items())
        return f"<Selection: {self.who}{f' ({options})' if options else ''}, {self.why}>"

    @property
    def who(self) -> str:
        """The plugin as errors call it."""
        return self.info.who

    def build(self) -> Any:
        """What the plugin builds for the request. Its own DBAErrors keep their class and get its name, a
        device without memory passes, anything else is a PluginError.
        """
        with self.trace.step(self.info, "build") as step, kept_surroundings():
            built = contain(lambda: self.plugin.build(self.request, self.options))
            step.what = f"raised {built}" if isinstance(built, Failure) else type(built).__name__
        if not isinstance(built, Failure):
            return built
        told = attributed(built.error, self.who, "supports the request but failed to build")
        if told is built.error:
            raise told
        raise told from built.error

    @property
    def record(self) -> PluginRecord:
        """What a configuration records of this choice."""
        return PluginRecord(
            distribution=self.info.distribution,
            version=self.info.version,
            contract=self.plugin.contract,
            how=self.how,
            why=self.why,
        )

    def choice(self) -> PluginChoice:
        """This choice as a configuration records it."""
        return PluginChoice(self.name, options=options_to_dict(self.options), record=self.record)


def ask_support(loaded: LoadedPlugin, request: object, options: Any, *, trace: Trace) -> Support | str:
    """The plugin's own answer, or the problem with its answer."""
    with trace.step(loaded.info, "supports") as step, kept_surroundings():
        answer: object = contain(lambda: loaded.plugin.supports(request, options))
        problem = answer_problem(answer)
        if problem is not None or not isinstance(answer, Support):
            step.what = str(answer) if isinstance(answer, Failure) else str(problem)
            return f"{loaded.info.who} is broken: its supports() {problem}"
        step.what = "yes" if answer.ok else f"no ({'; '.join(map(str, answer.reasons))})"
    return answer


def answer_problem(answer: object) -> str | None:
    """What `supports()` did instead of answering, None where this is an answer."""
    if isinstance(answer, Failure):
        return f"raised {answer}"
    if not isinstance(answer, Support):
        return f"returned {shown(answer)}, no Support"
    for name, reasons in (("reasons", answer.reasons), ("next_is_better", answer.next_is_better)):
        if not isinstance(reasons, (tuple, list)) or not all(isinstance(each, Reason) for each in reasons):
            return f"returned a Support whose {name} are {shown(reasons)}, no tuple of Reason"
    return None
