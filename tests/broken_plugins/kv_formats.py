"""Cache formats that are right but for one mistake each: 8 bits with a scale per block."""

from __future__ import annotations

import attrs
import torch

from dba_core.cache.blocks import RowLayout
from dba_core.contracts import Encoded, FormatFacts, NoOptions, Support

FACTS = FormatFacts(
    bits=8,
    code_dtype="int8",
    qblocks=(8, 32),
    default_qblock=32,
    max_input=2.0**126,
    round_trip_error=5.4e-3,
)


class Eight:
    """The right one. Subclasses override one step."""

    def __init__(self, request):
        self.layout = RowLayout.of(request)

    def encode(self, x):
        x = self.given(x)
        scales = self.scales(x)
        codes = self.round(self.layout.cut(x) / self.layout.per_unit(scales)).clamp(-127, 127)
        return Encoded(codes.to(torch.int8).flatten(-2), scales)

    def decode(self, codes, scales):
        values = codes.to(torch.float32, memory_format=torch.contiguous_format)
        return (self.layout.cut(values) * self.layout.per_unit(scales)).flatten(-2)

    def given(self, x):
        return x.float()

    def scales(self, x):
        return self.layout.scales(x, levels=127)

    def round(self, x):
        return x.round()


class Truncates(Eight):
    def round(self, x):
        return x.trunc()


class ScaleOfTheWholeToken(Eight):
    """An outlier costs every block of its token."""

    def scales(self, x):
        scales = super().scales(x)
        return scales.amax(dim=1, keepdim=True).expand_as(scales).contiguous()


class ScaleOfTheWholeBatch(Eight):
    """What a token is stored as depends on what came with it."""

    def scales(self, x):
        scales = super().scales(x)
        return scales.amax(dim=2, keepdim=True).expand_as(scales).contiguous() if x.numel() else scales


class HalfScales(Eight):
    """Scales that end where fp16 does."""

    def scales(self, x):
        return super().scales(x).half().bfloat16()


class AddsAnOffset(Eight):
    """Codes that depend on the size of the values, not on x / scale alone."""

    def encode(self, x):
        return super().encode(x.float() + 0.01)


class ForgetsLastValue(Eight):
    """Packs in pairs, and loses the last value of an odd width."""

    def decode(self, codes, scales):
        values = super().decode(codes, scales)
        if values.shape[-1] % 2:
            values[..., -1] = 0.0
        return values


class ScalesInFloat32(Eight):
    """Other planes than it states."""

    def encode(self, x):
        done = super().encode(x)
        return attrs.evolve(done, scales=done.scales.float())


class ChangesItsInput(Eight):
    def given(self, x):
        return x.mul_(1.0).clamp_(-1, 1) if x.dtype == torch.float32 and x.numel() else x.float()


class IsRandom(Eight):
    def round(self, x):
        return (x + 0.4 * torch.rand_like(x) - 0.2).round()


class ViewsItsInput(Eight):
    """Takes contiguous tensors only."""

    def given(self, x):
        return x.view(-1).view(x.shape).float()


class CannotBeCopied(Eight):
    def __init__(self, request):
        super().__init__(request)
        self.layout_of = lambda: self.layout


class Raises(Eight):
    def encode(self, x):
        raise IndexError("no such block")


class FormatPlugin:
    """The plugin around one of them."""

    name = "eight"
    contract = 1
    summary = "for tests"
    options_class = NoOptions

    def __init__(self, codec, *, facts=FACTS):
        self.codec = codec
        self.facts = facts

    def supports(self, request, options):
        return self.facts.supports(request)

    def build(self, request, options):
        return self.codec(request)


class TakesAnyBlock(FormatPlugin):
    """Declines nothing, and cannot build what has no blocks."""

    def supports(self, request, options):
        return Support.yes()
