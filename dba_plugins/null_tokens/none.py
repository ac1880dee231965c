"""No null token: a query attends to tokens only. The default."""

from __future__ import annotations

from dba_core.contracts import NoOptions, NullTokenPlugin, NullTokenRequest, Support
from dba_core.hookspecs import hookimpl


class NoNullTokenPlugin:
    name = "none"
    contract = 1
    summary = "no null token"
    options_class = NoOptions

    def supports(self, request: NullTokenRequest, options: NoOptions) -> Support:
        return Support.yes()

    def build(self, request: NullTokenRequest, options: NoOptions) -> None:
        return None


@hookimpl
def dba_null_token() -> NullTokenPlugin:
    return NoNullTokenPlugin()
