"""Whether something is supported, and the reasons against it, as data. Imports nothing of ours."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Reason:
    """Why something is not supported, as data: what it is about, what was got, what would do, what to do."""

    subject: str
    got: str
    supported: str
    action: str

    def __str__(self) -> str:
        return f"{self.subject}: got {self.got}; supported: {self.supported}. {self.action}"


@attrs.frozen
class Support:
    """The answer of `supports()`. Supported exactly when there are no reasons against it.

    next_is_better: why `auto` does well to take the next plugin of its order instead, if that one supports
    the request; a plugin that is chosen by name runs all the same.
    """

    reasons: tuple[Reason, ...] = ()
    next_is_better: tuple[Reason, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons

    @classmethod
    def yes(cls) -> Support:
        return cls()

    @classmethod
    def no(cls, *reasons: Reason) -> Support:
        if not reasons:
            raise ValueError("Support.no() needs at least one Reason")
        return cls(reasons)
