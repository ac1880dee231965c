"""Which plugins may be used.

An allow or block list has entries `name`, `kind=name`, `distribution:name`, `distribution:*` (all of a
distribution), or a kind before one of the latter two. An entry that fits nothing installed is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs

from dba_core.distribution import canonical, is_ours
from dba_core.errors import PluginError, unknown
from dba_core.kinds import KINDS
from dba_core.registry.discovery import PluginInfo

#: The environment variable that holds an allow list, with commas between the entries.
ALLOW_VARIABLE = "DBA_PLUGINS_ALLOW"
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

    def check(self, known: Collection[PluginInfo]) -> None:
        """Raise PluginError for an entry that fits none of the installed plugins."""
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
    return plain == info.name or (bool(colon) and plain == "*")


def _names(entry: str, infos: Collection[PluginInfo]) -> set[str]:
    """The installed plugins in the form of the entry."""
    kind, equals, name = entry.rpartition("=")
    fitting = [info for info in infos if info.kind == kind.strip() or kind.strip() not in KINDS]
    names = {info.qualified if ":" in name else info.name for info in fitting}
    return {f"{info.kind}={info.name}" for info in fitting} if equals and ":" not in name else names
