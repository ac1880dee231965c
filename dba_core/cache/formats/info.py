"""What each cache format costs and keeps, as plain numbers: one row per format, no torch.

Read by `cache.bytes` (sizes), by the codecs of this package (each takes its row) and by the documentation.
"""

from __future__ import annotations

import attrs

from dba_core.config.kv_policy import BLOCK_FORMATS
from dba_core.errors import CacheError, unknown

#: Bytes of one block scale (bf16).
SCALE_BYTES = 2

#: The largest finite fp16 number, which is also the limit of the residual window.
FP16_MAX = 65504.0


@attrs.frozen(kw_only=True)
class FormatInfo:
    """One format.

    bits: size of one value's code, scales not counted. max_input: the largest |x| that it takes.
    round_trip_error: relative L2 error on float32 values of N(0,1), for block formats in blocks of 32.
    """

    name: str
    bits: int
    max_input: float
    round_trip_error: float

    @property
    def quantized(self) -> bool:
        """Codes with a scale per block, not floating-point numbers."""
        return self.name in BLOCK_FORMATS

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of the codes of one head of one token."""
        return -(-self.bits * head_dim // 8)

    def scale_bytes(self, row: int, qblock: int) -> int:
        """Bytes of the scales of one token whose flattened row has `row` values."""
        return SCALE_BYTES * -(-row // qblock) if self.quantized else 0


_FP32_MAX = (2.0 - 2.0**-23) * 2.0**127
_BF16_MAX = (2.0 - 2.0**-7) * 2.0**127
#: Block formats: low enough that neither a scale rounded up nor the product code * scale overflows float32.
_BLOCK_MAX = 2.0**126

_ROWS = (
    FormatInfo(name="fp32", bits=32, max_input=_FP32_MAX, round_trip_error=0.0),
    FormatInfo(name="fp16", bits=16, max_input=FP16_MAX, round_trip_error=2.1e-4),
    FormatInfo(name="bf16", bits=16, max_input=_BF16_MAX, round_trip_error=1.7e-3),
    FormatInfo(name="q8_0", bits=8, max_input=_BLOCK_MAX, round_trip_error=5.4e-3),
    FormatInfo(name="q4_0", bits=4, max_input=_BLOCK_MAX, round_trip_error=9.7e-2),
    FormatInfo(name="nf4", bits=4, max_input=_BLOCK_MAX, round_trip_error=8.7e-2),
)
FORMAT_INFO = {row.name: row for row in _ROWS}


def format_info(name: str) -> FormatInfo:
    """The row of one format. Raises CacheError that lists the formats when there is none."""
    if name not in FORMAT_INFO:
        raise CacheError(unknown("cache format", name, FORMAT_INFO))
    return FORMAT_INFO[name]
