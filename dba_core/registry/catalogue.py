"""What is installed and may be used, and what a name means. Imports no plugin.

An allow or block list has entries `name`, `kind=name`, `distribution:name`, `distribution:*` (all of a
distribution), or a kind before one of the latter two. An entry that fits nothing installed is an error.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution

import attrs

from dba_core.contracts import Kind
from dba_core.distribution import canonical, is_ours
from dba_core.errors import PluginError, unknown
from dba_core.kinds import KINDS
from dba_core.registry.discovery import Discovery, PluginInfo, discover

#: The environment variable that holds an allow list, with commas between the entries.
ALLOW_VARIABLE = "DBA_PLUGINS_ALLOW"
_ALL = "*"
_FORMS = "Write name, kind=name, distribution:name or distribution:*"


@attrs.frozen(kw_only=True)
class Access:
    """allowed: None allows everything that is not blocked."""

    blocked: tuple[str, ...] = ()
    allowed: tuple[str, ...] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, blocked: Sequence[str] = ()) -> Access:
        """The allow list of `environ` and this block list. Raises PluginError for an empty allow list."""
        text = environ.get(ALLOW_VARIABLE)
        if text is None:
            return cls(blocked=tuple(blocked))
        allowed = tuple(part.strip() for part in text.split(",") if part.strip())
        if not allowed:
            raise PluginError(
                f"{ALLOW_VARIABLE}={text!r} lists no plugin. {_FORMS}, with commas between them, or unset it."
            )
        return cls(blocked=tuple(blocked), allowed=allowed)

    def refusal(self, info: PluginInfo) -> str | None:
        """Why this plugin may not be used, None when it may."""
        for entry in self.blocked:
            if _fits(entry, info):
                return f"blocked by Access(blocked=[{entry!r}])"
        if is_ours(info.distribution) and not KINDS[info.kind].per_layer:
            return None  # the library's own formats, sources and commands: nothing works without them
        if self.allowed is not None and not any(_fits(entry, info) for entry in self.allowed):
            return f"not in the allow list {ALLOW_VARIABLE}={','.join(self.allowed)}"
        return None

    def check(self, infos: Iterable[PluginInfo]) -> None:
        """Raise PluginError for an entry that fits none of the installed plugins."""
        known = list(infos)
        for place, entries in (("Access.blocked", self.blocked), (ALLOW_VARIABLE, self.allowed or ())):
            for entry in entries:
                if not any(_fits(entry, info) for info in known):
                    raise PluginError(f"{place}: {unknown('plugin', entry, _names(entry, known))} {_FORMS}.")


def _fits(entry: str, info: PluginInfo) -> bool:
    kind, equals, name = entry.rpartition("=")
    if equals and kind.strip() != info.kind:
        return False
    distribution, colon, plain = name.strip().rpartition(":")
    if colon and canonical(distribution) != canonical(info.distribution):
        return False
    return plain == info.name or (bool(colon) and plain == _ALL)


def _names(entry: str, infos: list[PluginInfo]) -> set[str]:
    """The installed plugins in the form of the entry."""
    kind, equals, name = entry.rpartition("=")
    fitting = [info for info in infos if info.kind == kind.strip() or kind.strip() not in KINDS]
    names = {info.qualified if ":" in name else info.name for info in fitting}
    return {f"{info.kind}={info.name}" for info in fitting} if equals and ":" not in name else names


#: Kind, distribution and name: what tells one plugin from every other.
Key = tuple[Kind, str, str]


def key_of(info: PluginInfo) -> Key:
    return info.kind, canonical(info.distribution), info.name


class Catalogue:
    """The plugins of some distributions (None: those of the interpreter's path) and those that were added."""

    def __init__(self, distributions: Iterable[Distribution] | None, access: Access) -> None:
        self.access = access
        self._distributions = distributions
        self._added: dict[Key, PluginInfo] = {}

    @functools.cached_property
    def _discovery(self) -> Discovery:
        found = importlib.metadata.distributions() if self._distributions is None else self._distributions
        return discover(found)

    @property
    def problems(self) -> tuple[str, ...]:
        """Distributions whose metadata cannot be read, with the reason."""
        return self._discovery.problems

    @property
    def orders(self) -> tuple[tuple[str, str], ...]:
        """The auto orders (distribution, reference) of the distributions whose code may be imported."""
        return tuple(order for order in self._discovery.orders if self._may_import(order[0]))

    def add(self, info: PluginInfo) -> None:
        """A plugin made in code."""
        self._added[key_of(info)] = info

    def has(self, info: PluginInfo) -> bool:
        """Whether the distribution has a plugin of this kind and name already."""
        return any(key_of(other) == key_of(info) for other in self.everything)

    def infos(self, kind: Kind) -> list[PluginInfo]:
        """Those of one kind, by name. Raises PluginError for an unknown kind, and where the allow or block
        list names what is not there.
        """
        self.check_kind(kind)
        self.access.check(self.everything)
        return sorted(self._of(kind), key=lambda info: (info.name, info.distribution))

    def check_kind(self, kind: Kind) -> None:
        """Raise PluginError for an unknown kind."""
        if kind not in KINDS:
            raise PluginError(unknown("plugin kind", kind, KINDS))

    def shown(self, info: PluginInfo) -> PluginInfo:
        """The info with what is known against it from metadata: not allowed, or a name of another one too."""
        refusal = self.access.refusal(info)
        if refusal is not None:
            return attrs.evolve(info, problem=refusal)
        others = [
            other
            for other in self.infos(info.kind)
            if other.name == info.name and key_of(other) != key_of(info) and not self.access.refusal(other)
        ]
        if info.problem is None and others:
            owners = ", ".join(other.distribution for other in others)
            problem = f"{owners} provides this name too: choose it as {info.qualified!r}"
            return attrs.evolve(info, problem=problem)
        return info

    def find(self, kind: Kind, name: str, *, prefer: str | None = None) -> PluginInfo:
        """The one plugin that `name` or `distribution:name` means; a blocked one only where no other does.

        prefer: the distribution that settles a name which several use. Raises PluginError for an unknown or
        ambiguous name.
        """
        known = self.infos(kind)
        distribution, colon, plain = name.rpartition(":")
        found = [info for info in known if info.name == plain]
        if colon:
            found = [info for info in found if canonical(info.distribution) == canonical(distribution)]
        elif prefer is not None:
            found = [i for i in found if canonical(i.distribution) == canonical(prefer)] or found
        found = [info for info in found if self.access.refusal(info) is None] or found
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(f"{info.distribution} {info.version}" for info in found)
            ways = " or ".join(repr(info.qualified) for info in found)
            raise PluginError(f"{kind} {name!r} is ambiguous: {owners} both provide it. Write {ways}.")
        names = {info.qualified for info in known} if colon else {info.name for info in known}
        names.add("auto")
        if colon and any(info.name == distribution for info in known):
            raise PluginError(
                f"{name!r} is no {kind}. Options are key=value: {kind}={distribution}:KEY=VALUE. Allowed: "
                f"{', '.join(sorted(names))}."
            )
        kinds = [each for each in KINDS if any(name in (i.name, i.qualified) for i in self._of(each))]
        if not kinds:
            raise PluginError(unknown(kind, name, names))
        ways = " or ".join(KINDS[each].chosen_by(name) for each in kinds)
        raise PluginError(
            f"{name!r} is no {kind} but a {' and a '.join(kinds)}: choose it with {ways}. "
            f"Allowed for {kind}: {', '.join(sorted(names))}."
        )

    def _of(self, kind: Kind) -> list[PluginInfo]:
        return [info for info in self.everything if info.kind == kind]

    @property
    def everything(self) -> list[PluginInfo]:
        """Every plugin of every kind, whatever the lists say."""
        return [*self._discovery.plugins, *self._added.values()]

    def _may_import(self, distribution: str) -> bool:
        """Not where every plugin of it is refused, nor outside of an allow list."""
        own = [i for i in self._discovery.plugins if canonical(i.distribution) == canonical(distribution)]
        allowed = [info for info in own if self.access.refusal(info) is None]
        return bool(allowed) or (not own and self.access.allowed is None)
