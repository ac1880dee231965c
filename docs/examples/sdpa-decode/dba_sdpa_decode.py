"""Decode by one call of torch's fused attention over a dequantized copy of the cache:

    out = scaled_dot_product_attention([q_sem | q_geo], [K_sem | K_geo], V, scale=1)

Short, right for every format, and fast where torch has a fused kernel for the device; it dequantizes all of
the cache for every token, so memory and time grow with the length. The fused kernels do not return the
log-sum-exp, so requests that need it are refused.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core import hookimpl
from dba_core.contracts import (
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeOutput,
    DecodeRequest,
    KVLayer,
    NullKV,
    Reason,
    Support,
    TokenWriter,
)
from dba_core.errors import ConfigError, UnsupportedError

NO_LSE = Reason(
    subject="needs_lse",
    got="True",
    supported="False: scaled_dot_product_attention does not return the log-sum-exp",
    action="Choose decode_backend=streaming.",
)


@attrs.frozen(kw_only=True)
class SdpaOptions:
    """max_tokens: the longest cache that is taken, since all of it is dequantized for every token."""

    max_tokens: int = 262144

    def __attrs_post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"{self.max_tokens} is out of range; allowed: 1 or more", path="max_tokens")


class SdpaDecode:
    """One query token per sequence over one layer's cache."""

    name = "sdpa"
    fused_null = False
    writer: TokenWriter | None = None

    @torch.no_grad()
    def decode(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: KVLayer,
        *,
        null: NullKV | None = None,
        needs_lse: bool = False,
    ) -> DecodeOutput:
        """q_sem [B,H,Ds], q_geo [B,H,Dg], scaled -> out [B,H,Dv]."""
        if needs_lse:
            raise UnsupportedError("the decode backend 'sdpa' cannot do this", reasons=(NO_LSE,))
        query = torch.cat((q_sem, q_geo), dim=-1).float()  # [B, H, Ds+Dg]
        keys = torch.cat(
            [tensor.read(0, cache.length) for tensor in (cache.k_sem, cache.k_geo)], dim=-1
        )  # [B, G, S, Ds+Dg]
        values = cache.v.read(0, cache.length)  # [B, G, S, Dv]
        lengths = cache.lengths_device.to(torch.int64)[:, None]
        visible = torch.arange(keys.shape[2], device=keys.device) < lengths  # [B, S]
        if null is not None:
            first = torch.cat((null.k_sem, null.k_geo), dim=-1).float()
            keys, values = _with_first(first, keys), _with_first(null.v.float(), values)
            visible = F.pad(visible, (1, 0), value=True)
        out = _attention(query, keys, values, visible)
        return DecodeOutput(out=out.to(q_geo.dtype))


def _attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """query [B,H,D], keys [B,G,S,D], values [B,G,S,Dv], visible [B,S] -> [B,H,Dv].

    A row without a visible token gives zeros.
    """
    batch, n_heads, _ = query.shape
    width = max(keys.shape[-1], values.shape[-1])  # the fused kernels want keys and values of one width
    grouped = F.pad(query.view(batch, keys.shape[1], -1, query.shape[-1]), (0, width - query.shape[-1]))
    out = F.scaled_dot_product_attention(
        grouped,
        F.pad(keys, (0, width - keys.shape[-1])),
        F.pad(values, (0, width - values.shape[-1])),
        attn_mask=visible[:, None, None, :],
        scale=1.0,
    )  # [B, G, H/G, width]
    out = out[..., : values.shape[-1]].reshape(batch, n_heads, values.shape[-1])
    return out.masked_fill(~visible.any(dim=1)[:, None, None], 0.0)


def _with_first(first: Tensor, planes: Tensor) -> Tensor:
    """first [G,D] as token number zero of planes [B,G,S,D]."""
    return torch.cat((first[None, :, None].expand(len(planes), -1, -1, -1), planes), dim=2)


class SdpaPlugin:
    name = "sdpa"
    contract = 1
    summary = "dequantizes the cache, then one scaled_dot_product_attention"
    options_class = SdpaOptions

    def supports(self, request: DecodeRequest, options: SdpaOptions) -> Support:
        reasons = [NO_LSE] if request.needs_lse else []
        heads = {tensor.n_heads for tensor in (request.k_sem, request.k_geo, request.v)}
        if len(heads) > 1 or request.shape.n_heads % max(heads):
            reasons.append(
                Reason(
                    subject="KV heads",
                    got=f"{sorted(heads)} for {request.shape.n_heads} query heads",
                    supported="one number for keys and values, which divides the query heads",
                    action="Choose decode_backend=streaming.",
                )
            )
        if request.capacity > options.max_tokens:
            reasons.append(
                Reason(
                    subject="capacity",
                    got=f"{request.capacity} tokens",
                    supported=f"up to max_tokens={options.max_tokens}",
                    action="Raise max_tokens, or choose decode_backend=streaming.",
                )
            )
        return Support(tuple(reasons))

    def build(self, request: DecodeRequest, options: SdpaOptions) -> DecodeBackend:
        return SdpaDecode()


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return SdpaPlugin()
