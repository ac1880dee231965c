"""Summarizers, gates and null tokens that are right but for one mistake each."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from dba_core.contracts import NoOptions, NullKV, Support


class ModulePlugin:
    """A plugin that builds `module(request)` and supports everything."""

    contract = 1
    summary = "for tests"
    options_class = NoOptions

    def __init__(self, module, *, name="mine", options_class=NoOptions):
        self.module = module
        self.name = name
        self.options_class = options_class

    def supports(self, request, options):
        return Support.yes()

    def build(self, request, options):
        return self.module(request)


class Learned(nn.Module):
    """A sound summarizer: mean + scale * last token."""

    start = 0.0

    def __init__(self, request):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), self.start))

    def forward(self, k_sem, v):
        return tuple(self.one(x) for x in (k_sem, v))

    def one(self, x):
        return x.mean(dim=3) + self.scale * self.residual(x)

    def residual(self, x):
        return x[:, :, :, -1]


class LeaksNextBlock(Learned):
    """The first token of the next block gets in: one token of the future."""

    def residual(self, x):
        return torch.cat((x[:, :, 1:, 0], x[:, :, -1:, -1]), dim=2)


class ReturnsList(Learned):
    """What the attention refuses."""

    def forward(self, k_sem, v):
        return [self.one(k_sem), self.one(v)]


class NotMeanAtStart(Learned):
    start = 0.1


class Detached(Learned):
    def residual(self, x):
        return super().residual(x).detach()


class UnusedParameter(Learned):
    def __init__(self, request):
        super().__init__(request)
        self.spare = nn.Parameter(torch.zeros(2))


class MutatesTokens(Learned):
    def residual(self, x):
        with torch.no_grad():
            x.mul_(0.5)
        return super().residual(x)


class Dropout(Learned):
    def residual(self, x):
        return nn.functional.dropout(super().residual(x), 0.5, self.training)


class ForgetsState(Learned):
    """What it learned is hidden from state_dict."""

    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, state, strict=True, assign=False):
        return None


class CausalGate(nn.Module):
    """A sound gate."""

    start = 0.0

    def __init__(self, request):
        super().__init__()
        shape = request.shape
        self.weight = nn.Parameter(torch.zeros(shape.n_heads, shape.d_model))
        self.bias = nn.Parameter(torch.full((shape.n_heads,), self.start))

    def forward(self, x):
        return torch.sigmoid(self.logits(x)).transpose(1, 2).unsqueeze(-1)

    def logits(self, x):
        return x @ self.weight.T + self.bias


class LeaksNextToken(CausalGate):
    """Row t reads x[t + 1]; zero weights hide it at the start."""

    def logits(self, x):
        return super().logits(torch.cat((x[:, 1:], x[:, -1:]), dim=1))


class NotNeutral(CausalGate):
    start = 1.0


class Unbounded(CausalGate):
    def forward(self, x):
        return (0.5 + self.logits(x)).transpose(1, 2).unsqueeze(-1)


class LearnedNull(nn.Module):
    """A sound null token."""

    def __init__(self, request):
        super().__init__()
        shape = request.shape
        self.k_sem, self.k_geo, self.v = (
            nn.Parameter(torch.zeros(self.heads(shape), width))
            for width in (shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim)
        )

    def heads(self, shape):
        return shape.n_kv_heads

    def forward(self):
        return NullKV(k_sem=self.k_sem, k_geo=self.k_geo, v=self.v)


class OneNullPerQueryHead(LearnedNull):
    def heads(self, shape):
        return shape.n_heads


class DriftingNull(LearnedNull):
    """Another value at every call."""

    def forward(self):
        return NullKV(k_sem=self.k_sem, k_geo=self.k_geo, v=self.v + torch.rand(()))


@attrs.frozen(kw_only=True)
class LossyOptions:
    """What is given is not what is stored, and the change is not stable."""

    rate: float = attrs.field(default=1.0, converter=lambda value: value / 2)


@attrs.define(kw_only=True)
class MutableOptions:
    """Options that can change under a plugin's feet."""

    rate: float = 1.0
