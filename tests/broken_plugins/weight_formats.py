"""Weight formats that are right but for one mistake each: a byte per value, a scale per row."""

from __future__ import annotations

import torch

from dba_core.contracts import NoOptions, Support, WeightFacts

FACTS = WeightFacts(bits=8.2, round_trip_error=1.2e-2, product_error=1e-5)


class Bytes:
    """The right one. Subclasses override one step."""

    def __init__(self, weight):
        weight = self.given(weight)
        self.scales = self.scale(weight)
        self.codes = (weight / self.scales).round().clamp(-127, 127).char()
        self.shape = tuple(self.codes.shape)
        self.nbytes = self.codes.nbytes + self.scales.nbytes
        self.device = self.codes.device

    def given(self, weight):
        return weight.detach().float()

    def scale(self, weight):
        return weight.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127.0

    def product(self, x):
        return ((x.float() @ self.codes.float().T) * self.scales[:, 0]).to(x.dtype)

    def rows(self, index):
        return self.codes[index].float() * self.scales[index]


class OneScale(Bytes):
    def scale(self, weight):
        return (weight.abs().amax() / 127.0).clamp_min(1e-30).expand(len(weight), 1).contiguous()


class ForgetsTheScale(Bytes):
    def product(self, x):
        return (x.float() @ self.codes.float().T).to(x.dtype)


class RoundsX(Bytes):
    """One scale for all rows of x."""

    def product(self, x):
        step = (x.float().abs().max() if x.numel() else x.new_ones(())) / 127.0 + 1e-30
        return super().product((x.float() / step).round() * step).to(x.dtype)


class AlwaysFloat32(Bytes):
    def product(self, x):
        return super().product(x.float())


class NoLeadingDimensions(Bytes):
    def product(self, x):
        return super().product(x.reshape(-1, x.shape[-1]))


class WritesIntoX(Bytes):
    def product(self, x):
        x.mul_(2.0)
        return super().product(x) / 2.0


class NextRow(Bytes):
    def rows(self, index):
        return super().rows((index + 1) % len(self.codes))


class HalfRows(Bytes):
    def rows(self, index):
        return super().rows(index).half()


class KeepsFloats(Bytes):
    def __init__(self, weight):
        super().__init__(weight)
        self.nbytes += weight.nbytes


class ScalesTheWeight(Bytes):
    def given(self, weight):
        return weight.mul_(1.01).float()


class CannotBeCopied(Bytes):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class CannotBePickled(Bytes):
    def __reduce__(self):
        raise TypeError("no pickles")


class Turned(Bytes):
    def __init__(self, weight):
        super().__init__(weight)
        self.shape = self.shape[::-1]


class Random(Bytes):
    def product(self, x):
        made = super().product(x)
        return made + 1e-7 * torch.rand_like(made)


class Raises(Bytes):
    def product(self, x):
        raise KeyError("no such row")


class NoProduct:
    def __init__(self, weight):
        self.shape = tuple(weight.shape)


class FormatPlugin:
    name = "broken"
    contract = 1
    summary = "bytes"
    options_class = NoOptions

    def __init__(self, weight_class, facts=FACTS):
        self.weight_class, self.facts = weight_class, facts

    def supports(self, request, options):
        return Support.yes()

    def build(self, request, options):
        return self.weight_class
