"""The plugins `fp32 fp16 bf16 q8_0 q4_0 nf4`: what each format costs and keeps, as plain numbers.

No torch here, because a KV policy is read without it; a codec's module is imported when a cache is made.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from dba_core.contracts import (
    FP16_MAX,
    FormatFacts,
    KVCodec,
    KVFormatPlugin,
    KVFormatRequest,
    NoOptions,
    Support,
)
from dba_core.hookspecs import hookimpl

_FP32_MAX = (2.0 - 2.0**-23) * 2.0**127
_BF16_MAX = (2.0 - 2.0**-7) * 2.0**127
#: Block formats: low enough that neither a scale rounded up nor the product code * scale overflows float32.
_BLOCK_MAX = 2.0**126
_QBLOCKS = (8, 16, 32, 64, 128, 256)


@attrs.frozen(kw_only=True)
class Format:
    """A format that takes any heads, widths and devices, and has no options."""

    name: str
    summary: str
    facts: FormatFacts
    codec: Callable[[KVFormatRequest], KVCodec]
    contract: int = 1
    options_class: type[NoOptions] = NoOptions

    def supports(self, request: KVFormatRequest, options: NoOptions) -> Support:
        return self.facts.supports(request)

    def build(self, request: KVFormatRequest, options: NoOptions) -> KVCodec:
        return self.codec(request)

    @hookimpl
    def dba_kv_format(self) -> KVFormatPlugin:
        return self


def _float(dtype: str) -> Callable[[KVFormatRequest], KVCodec]:
    def build(request: KVFormatRequest) -> KVCodec:
        from dba_plugins.kv_formats.floats import FloatCodec

        return FloatCodec(dtype)

    return build


def _q8_0(request: KVFormatRequest) -> KVCodec:
    from dba_plugins.kv_formats.q8_0 import Q8Codec

    return Q8Codec(request)


def _q4_0(request: KVFormatRequest) -> KVCodec:
    from dba_plugins.kv_formats.q4_0 import Q4Codec

    return Q4Codec(request)


def _nf4(request: KVFormatRequest) -> KVCodec:
    from dba_plugins.kv_formats.nf4 import NF4Codec

    return NF4Codec(request)


FP32 = Format(
    name="fp32",
    summary="every value as it is",
    facts=FormatFacts(
        bits=32,
        code_dtype="float32",
        max_input=_FP32_MAX,
        round_trip_error=0.0,
        other_names=("f32", "float", "float32", "32"),
    ),
    codec=_float("float32"),
)
FP16 = Format(
    name="fp16",
    summary="half precision: 11 significant bits, up to 65504",
    facts=FormatFacts(
        bits=16,
        code_dtype="float16",
        max_input=FP16_MAX,
        round_trip_error=2.1e-4,
        tried=(0,),
        other_names=("f16", "half", "float16", "16"),
    ),
    codec=_float("float16"),
)
BF16 = Format(
    name="bf16",
    summary="8 significant bits, the range of float32",
    facts=FormatFacts(
        bits=16,
        code_dtype="bfloat16",
        max_input=_BF16_MAX,
        round_trip_error=1.7e-3,
        other_names=("bfloat16",),
    ),
    codec=_float("bfloat16"),
)
Q8_0 = Format(
    name="q8_0",
    summary="one signed byte per value and a scale per block",
    facts=FormatFacts(
        bits=8,
        code_dtype="int8",
        qblocks=_QBLOCKS,
        default_qblock=32,
        max_input=_BLOCK_MAX,
        round_trip_error=5.4e-3,
        tried=(32, 128),
        other_names=("q8", "int8", "8bit", "8", "q8_k", "fp8"),
    ),
    codec=_q8_0,
)
Q4_0 = Format(
    name="q4_0",
    summary="16 equal steps around zero, half a byte per value and a scale per block",
    facts=FormatFacts(
        bits=4,
        packed=2,
        code_dtype="uint8",
        qblocks=_QBLOCKS,
        default_qblock=32,
        max_input=_BLOCK_MAX,
        round_trip_error=9.7e-2,
        tried=(32, 64, 128, 256),
        other_names=("q4", "int4", "4bit", "4", "q4_k", "q4_1", "fp4"),
    ),
    codec=_q4_0,
)
NF4 = Format(
    name="nf4",
    summary="16 levels denser around zero, half a byte per value and a scale per block",
    facts=FormatFacts(
        bits=4,
        packed=2,
        code_dtype="uint8",
        qblocks=_QBLOCKS,
        default_qblock=32,
        max_input=_BLOCK_MAX,
        round_trip_error=8.7e-2,
        tried=(32,),
    ),
    codec=_nf4,
)
