"""The assembly that turns codes into fp16: its bits for every byte in every place, against the formats."""

from __future__ import annotations

import struct

import pytest
from ptx_model import halves, run

from dba_core.cache.formats.nf4 import NF4_LEVELS
from dba_plugins.decode.triton.tile import NF4_CODE, Q4_CODE, Q8_CODE

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
]


def words():
    """Registers in which every byte stands in every place, beside other ones."""
    for byte in range(256):
        yield bytes([byte, 255 - byte, (byte * 7 + 3) % 256, (byte * 31 + 11) % 256])
        yield bytes([(byte * 5 + 1) % 256, byte, byte ^ 0x5A, byte])
        yield bytes([(byte * 3) % 256, (byte * 13) % 256, byte, byte ^ 0xFF])


def fp16(x: float) -> float:
    return struct.unpack("<e", struct.pack("<e", x))[0]


def test_signed_bytes() -> None:
    for word in words():
        first, second = run(Q8_CODE.value, [int.from_bytes(word, "little")], 2)
        assert (*halves(first), *halves(second)) == struct.unpack("<4b", word)


@pytest.mark.parametrize("fmt", ["q4_0", "nf4"])
def test_nibbles_come_in_the_order_0_2_1_3(fmt: str) -> None:
    code = Q4_CODE.value if fmt == "q4_0" else NF4_CODE.value
    values = [float(n - 8) for n in range(16)] if fmt == "q4_0" else [fp16(x) for x in NF4_LEVELS]
    for word in words():
        low_a, low_b, high_a, high_b = run(code, [int.from_bytes(word, "little")], 4)
        order = [word[i] for i in (0, 2, 1, 3)]
        assert [*halves(low_a), *halves(low_b)] == [values[byte & 15] for byte in order]
        assert [*halves(high_a), *halves(high_b)] == [values[byte >> 4] for byte in order]
