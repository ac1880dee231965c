"""The options of the Triton backends, and facts about the installed Triton. Imports triton on demand."""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.serialization.validators import among, at_least


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
    """programs: how many a multiprocessor is to get. least_blocks: the fewest that are worth a program.

    Together they give the number of splits of a row. splits: that number itself; 0 leaves it to them.
    """

    programs: int = attrs.field(default=16, validator=at_least(1))
    least_blocks: int = attrs.field(default=4, validator=at_least(1))
    splits: int = attrs.field(default=0, validator=at_least(0))


def version_of(text: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU (TRITON_INTERPRET=1 before triton was imported)."""
    from triton.runtime.jit import JITFunction

    from dba_plugins.decode.triton.kernel import attend_kernel

    kernel: Any = attend_kernel
    return not isinstance(kernel, JITFunction)
