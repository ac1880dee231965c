"""What the summarizers have in common: the dtypes that they are made for."""

from __future__ import annotations

from dba_core.contracts import Reason, SummarizerRequest, Support

DTYPES = ("float32", "bfloat16")


def known_dtype(request: SummarizerRequest) -> Support:
    """Supported in float32 and bfloat16."""
    if request.dtype in DTYPES:
        return Support.yes()
    return Support.no(
        Reason(
            subject="dtype",
            got=request.dtype,
            supported=" or ".join(DTYPES),
            action="Set dtype to one of these.",
        )
    )
