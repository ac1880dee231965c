"""No null token: a query attends to tokens only. The default."""

from __future__ import annotations

from dba_core.contracts import CONTRACT_VERSIONS, NoOptions, NullTokenPlugin, NullTokenRequest, Support
from dba_core.hookspecs import hookimpl


class NoNullTokenPlugin:
    name = "none"
    contract = CONTRACT_VERSIONS["null_token"]
    summary = "no null token"
    options_class = NoOptions

    def supports(self, request: NullTokenRequest, options: NoOptions) -> Support:
        return Support.yes()

    def build(self, request: NullTokenRequest, options: NoOptions) -> None:
        return None


@hookimpl
def dba_null_token() -> NullTokenPlugin:
    return NoNullTokenPlugin()
