"""No gate: both query paths keep their scale. `auto` takes it where there is no semantic path."""

from __future__ import annotations

from dba_core.contracts import GatePlugin, GateRequest, NoOptions, Support
from dba_core.hookspecs import hookimpl


class NoGatePlugin:
    name = "none"
    contract = 1
    summary = "no gate"
    options_class = NoOptions

    def supports(self, request: GateRequest, options: NoOptions) -> Support:
        return Support.yes()

    def build(self, request: GateRequest, options: NoOptions) -> None:
        return None


@hookimpl
def dba_gate() -> GatePlugin:
    return NoGatePlugin()
