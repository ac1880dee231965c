"""The plugins `fp32 bf16 int8 int4`: what each weight format costs and keeps, read without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from dba_core.contracts import (
    NoOptions,
    Pack,
    PackedWeight,
    Reason,
    Support,
    WeightFacts,
    WeightFormatPlugin,
    WeightRequest,
)
from dba_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class Format:
    """A format of weights of any size, without options. devices: that it is made for. pack_table: for the
    token embedding and its output head, where that is another. exact_for: the only dtype of weights that
    `auto` takes it for.
    """

    name: str
    summary: str
    facts: WeightFacts
    pack: Pack
    pack_table: Pack | None = None
    exact_for: str | None = None
    devices: tuple[str, ...] = ("cpu",)
    contract: int = 1
    options_class: type[NoOptions] = NoOptions

    def supports(self, request: WeightRequest, options: NoOptions) -> Support:
        if request.device.partition(":")[0] in self.devices:
            stands_back = self.exact_for not in (None, request.dtype)
            return Support(next_is_better=(self._inexact(request),) if stands_back else ())
        return Support.no(
            Reason(
                subject="device",
                got=request.device,
                supported=" or ".join(self.devices),
                action="Run on the CPU, or choose weights=fp32 or bf16.",
            )
        )

    def _inexact(self, request: WeightRequest) -> Reason:
        return Reason(
            subject="dtype of the weights",
            got=request.dtype,
            supported=f"{self.exact_for} without loss",
            action=f"Choose weights={self.name} by name to round them.",
        )

    def build(self, request: WeightRequest, options: NoOptions) -> Pack:
        return self.pack_table if request.table and self.pack_table is not None else self.pack

    @hookimpl
    def dba_weight_format(self) -> WeightFormatPlugin:
        return self


def _fp32(weight: Tensor) -> PackedWeight:
    import torch

    from dba_plugins.weights.floats import FloatWeight

    return FloatWeight.pack(weight, dtype=torch.float32)


def _bf16(weight: Tensor) -> PackedWeight:
    import torch

    from dba_plugins.weights.floats import FloatWeight

    return FloatWeight.pack(weight, dtype=torch.bfloat16)


def _int8(weight: Tensor) -> PackedWeight:
    from dba_plugins.weights.blocks import BlockWeight

    return BlockWeight.pack(weight, bits=8)


def _int4(weight: Tensor) -> PackedWeight:
    from dba_plugins.weights.blocks import BlockWeight

    return BlockWeight.pack(weight, bits=4)


FP32 = Format(
    name="fp32",
    summary="every value as it is",
    facts=WeightFacts(bits=32, round_trip_error=0.0, product_error=1e-6),
    pack=_fp32,
    devices=("cpu", "cuda"),
)
BF16 = Format(
    name="bf16",
    summary="8 significant bits; computed in float32",
    facts=WeightFacts(bits=16, round_trip_error=1.7e-3, product_error=1e-6),
    pack=_bf16,
    exact_for="bfloat16",
    devices=("cpu", "cuda"),
)
INT8 = Format(
    name="int8",
    summary="a signed byte per value, a scale per 32; holds Q8_0 as it is",
    facts=WeightFacts(bits=8.5, round_trip_error=5.5e-3, product_error=2e-5),
    pack=_int8,
)
INT4 = Format(
    name="int4",
    summary="16 steps from the least value, fitted per 32; holds Q4_1 as it is; int8 for the embedding",
    facts=WeightFacts(bits=5, round_trip_error=7.5e-2, product_error=2e-5),
    pack=_int4,
    pack_table=_int8,
)
