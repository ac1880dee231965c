"""What the gates have in common: where they start, and that they need two paths to balance."""

from __future__ import annotations

import math

import attrs

from dba_core.contracts import GateRequest, Reason, Support
from dba_core.errors import ConfigError


@attrs.frozen(kw_only=True)
class GateOptions:
    """init: the gate's value before training; 0.5 leaves both paths as they are."""

    init: float = 0.5

    def __attrs_post_init__(self) -> None:
        if not 0.0 < self.init < 1.0:
            raise ConfigError(f"{self.init} is out of range; allowed: 0 < init < 1", path="init")

    @property
    def init_logit(self) -> float:
        """The logit whose sigmoid is `init`."""
        return math.log(self.init / (1.0 - self.init))


def needs_semantic_path(request: GateRequest) -> Support:
    """Supported where there is a semantic path beside the geometric one."""
    if request.shape.sem_head_dim:
        return Support.yes()
    return Support.no(
        Reason(
            subject="sem_head_dim",
            got="0 (this layout has no semantic path, so there is nothing to balance)",
            supported="1 or more",
            action="Choose mode='decoupled', or gate=none.",
        )
    )
