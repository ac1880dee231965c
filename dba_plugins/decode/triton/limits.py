"""The options of the Triton backends, and what they support and why not, before anything is compiled.

Imports no triton, no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata

import attrs

from dba_core.contracts import DecodeRequest, Reason
from dba_core.distribution import install_command
from dba_core.serialization.validators import among, at_least
from dba_plugins.decode.tensor_limits import ELSE, tensor_reasons
from dba_plugins.decode.triton.spec import MAX_WIDTH, NATIVE

DTYPES = ("float16", "bfloat16", "float32")
LEAST_CAPABILITY = (8, 0)
LEAST_VERSION = (3, 6)


@attrs.frozen(kw_only=True)
class TritonOptions:
    """block: tokens that a program reads at a time. warps: of a program. 0: as suits the widths."""

    block: int = attrs.field(default=0, validator=among(0, 16, 32, 64, 128))
    warps: int = attrs.field(default=0, validator=among(0, 1, 2, 4, 8))


@attrs.frozen(kw_only=True)
class OnePassOptions(TritonOptions):
    """tokens_per_launch: a longer cache is read by several launches, one after the other; 0: by one."""

    tokens_per_launch: int = attrs.field(default=0, validator=at_least(0))


@attrs.frozen(kw_only=True)
class TwoPassOptions(TritonOptions):
    """programs: how many a multiprocessor is to get; 0: what its registers hold. least_blocks: the fewest
    that are worth a program.

    Together they give the number of splits of a row. splits: that number itself; 0 leaves it to them.
    """

    programs: int = attrs.field(default=0, validator=at_least(0))
    least_blocks: int = attrs.field(default=4, validator=at_least(1))
    splits: int = attrs.field(default=0, validator=at_least(0))


def version_of(text: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def reasons(request: DecodeRequest) -> Iterator[Reason]:
    """Everything that speaks against the request."""
    yield from _of_machine(request)
    if request.dtype not in DTYPES:
        yield Reason(
            subject="dtype of the queries",
            got=request.dtype,
            supported=", ".join(DTYPES),
            action=f"Run the model in one of these. {ELSE}",
        )
    yield from tensor_reasons(request, formats=NATIVE, most=MAX_WIDTH, least_geometric=1)


def _of_machine(request: DecodeRequest) -> Iterator[Reason]:
    found = _installed()
    if found is None or version_of(found) < LEAST_VERSION:
        yield Reason(
            subject="triton",
            got="not installed" if found is None else found,
            supported="3.6 or later",
            action=f"Install it: {install_command('triton')}",
        )
    kind = request.device.partition(":")[0]
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return
    if kind != "cuda":
        yield Reason(subject="device", got=request.device, supported="cuda", action=ELSE)
    elif request.device_capability is not None and request.device_capability < LEAST_CAPABILITY:
        yield Reason(
            subject="compute capability",
            got=".".join(map(str, request.device_capability)),
            supported="8.0 or later",
            action=ELSE,
        )


@functools.cache
def _installed() -> str | None:
    """The version of triton, or None."""
    if importlib.util.find_spec("triton") is None:
        return None
    return metadata.version("triton")
