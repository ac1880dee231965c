"""Decoupled bottleneck attention as a module, for training, prefill and decode:

    y = out_proj(softmax(2g q_sem . k_sem / sqrt(Ds) + 2(1-g) R q_geo . R k_geo / sqrt(Dg)) v),   g = gate(x)

with an optional null key/value, and one projection at the end whatever the path. The path follows from the
arguments: no cache, several tokens into a cache, one token into a cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dba_core.attention.decode import DecodeBackends, ServedCache
from dba_core.attention.entrance import Part
from dba_core.attention.fused import fused_attention, packed_heads, taking_part
from dba_core.attention.inputs import check_inputs, uncompiled, weight_of, without_autocast
from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.long_sequence.evaluation import evaluation_path
from dba_core.attention.long_sequence.plan import LongSequencePath
from dba_core.attention.packed import pack_child, pack_projections
from dba_core.attention.prefill import prefill_attention
from dba_core.attention.projections import HeadProjections, Heads, Projection, matrix
from dba_core.cache.append_checks import whole_numbers
from dba_core.cache.layer import LayerCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig, ResolvedLongSequence
from dba_core.contracts import (
    DecodeBackend,
    GateRequest,
    Kind,
    NullKV,
    NullTokenRequest,
    Pack,
    SummarizerRequest,
)
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice


class DecoupledAttention(HeadProjections):
    """One attention layer of any layout (`config.mode`).

    gate, null_token, summarizer: a plugin's name, a `PluginChoice` or a module; decode_backend: a name, a
    choice or a backend. train_long_seq: None is off. context: the longest training sequence, where it is
    known. device: where the layer will run, which plugins are chosen for; the weights are made on the CPU,
    move them with `.to(device)`. projection: makes queries, keys and values, of the widths of `config`, in
    place of q_sem ... v_proj, which the layer then does not have.

    q_sem ... v_proj are called as modules: one that is wrapped or replaced, an adapter say, or that has hooks
    takes part in every pass.

    In training the summarizer's parameters have a gradient in every pass, of zeros where the sequence is too
    short to be summarized, so that DistributedDataParallel finds one; but none within `exact_in_training`.

    `config` is resolved; `selections` holds what the registry chose per kind (the decode backend from the
    first cache on); `long_sequence` is the resolved configuration of the long-sequence path, None where it is
    off or the layout has no semantic path to summarize.
    """

    def __init__(
        self,
        config: AttentionConfig,
        *,
        gate: str | PluginChoice | nn.Module = "auto",
        null_token: str | PluginChoice | nn.Module = "auto",
        summarizer: str | PluginChoice | nn.Module = "auto",
        decode_backend: str | PluginChoice | DecodeBackend = "auto",
        train_long_seq: LongSequenceConfig | None = None,
        registry: Registry | None = None,
        layer: int = 0,
        context: int | None = None,
        device: str = "cpu",
        projection: Projection | None = None,
    ) -> None:
        super().__init__(config.resolved(), projection)
        shape = self.shape
        self.layer = layer
        self.selections: dict[Kind, Selection] = {}
        self.out_proj = matrix(shape.n_heads * shape.v_head_dim, shape.d_model)

        installed = Registry.default() if registry is None else registry
        self._gate_part = Part.built("gate", gate, GateRequest(shape=shape, device=device), installed)
        self._null_part = Part.built(
            "null_token", null_token, NullTokenRequest(shape=shape, device=device), installed
        )
        self._summarizer_part = Part("summarizer", None, None)
        self.long_sequence: ResolvedLongSequence | None = None
        if train_long_seq is not None and train_long_seq.enabled and shape.sem_head_dim:
            self.long_sequence = long = train_long_seq.resolved(context=context or 0, device=device)
            self._summarizer_part = Part.built(
                "summarizer",
                summarizer,
                SummarizerRequest(shape=shape, mem_block=long.mem_block, device=device),
                installed,
                reached=context is None or long.threshold <= context,
            )
        parts = self._gate_part, self._null_part, self._summarizer_part
        self.gate, self.null_token, self.summarizer = (part.module for part in parts)
        for part in parts:
            self._note(part.kind, part.selection)
        self._at_evaluation: LongSequencePath | None = None
        self._exact_in_training = False

        self._backends = DecodeBackends(
            given=decode_backend, shape=shape, has_null=self.null_token is not None, registry=registry
        )

    def forward(
        self,
        x: Tensor,
        *,
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """x [B,T,d_model] -> [B,T,d_model]; token t attends to the tokens up to itself.

        cache: the tokens continue the cached ones and are appended (no gradients). counts, with a cache only:
        row b takes its first counts[b] tokens, the attention of the others is zero. mask, without a cache
        only: bool, [T,T], [H,T,T] or [B or 1, H or 1, T or 1, T or 1], True may be seen, on top of causality;
        the null token is always visible, and a token that sees nothing gets zeros. Padding [B,T] goes in as
        mask[:, None, None, :]. Raises ValueError for a wrong argument, CacheError as `LayerCache.append`.
        """
        check_inputs(x, self.shape, weight=self.weight, cache=cache, mask=mask, counts=counts)
        forgets = cache is not None and torch.is_grad_enabled()
        with torch.no_grad() if forgets else contextlib.nullcontext():
            if cache is not None:
                out = self._cached(x, cache, counts)
            elif (path := self._long_path(x.shape[1], mask)) is not None:
                out = self._long(x, path)
            else:
                out = self._uncached(x, mask)
                if self.summarizer is not None and self.training and not self._exact_in_training:
                    out = taking_part(out, self.summarizer)
            y: Tensor = self.out_proj(out.flatten(2))  # [B, T, H*Dv] -> [B, T, d_model]
        return y

    def new_cache(
        self, *, batch: int, capacity: int, policy: KVCachePolicy | str, rollback: int | None = None
    ) -> LayerCache:
        """An empty cache for `batch` sequences of at most `capacity` tokens, on the weights' device.

        The decode backend is chosen for it at once: UnsupportedError says why one chosen by name cannot
        serve it.
        """
        shape = self.shape
        sem_heads, geo_heads, v_heads = shape.cached_heads
        cache = LayerCache(
            k_sem=(sem_heads, shape.sem_head_dim),
            k_geo=(geo_heads, shape.geo_head_dim),
            v=(v_heads, shape.v_head_dim),
            batch=batch,
            capacity=capacity,
            policy=KVCachePolicy.parse(policy) if isinstance(policy, str) else policy,
            device=self.weight.device,
            layer=self.layer,
            rollback=rollback,
            registry=self._backends.registry,
        )
        self.decode_backend(cache)
        return cache

    def selection_without_cache(self, policy: KVCachePolicy, *, capacity: int, device: str) -> Selection:
        """The decode backend that would serve a cache of one sequence on `device`, and why."""
        dtype = self.weight.dtype
        return self._backends.selection_without_cache(
            policy, capacity=capacity, device=torch.device(device), dtype=dtype
        )

    def decode_selection(self, cache: LayerCache) -> Selection:
        """The decode backend that the registry chose for this cache, and why."""
        return self._backends.selection(cache, self.weight.dtype)

    def decode_backend(self, cache: LayerCache, dtype: torch.dtype | None = None) -> DecodeBackend:
        """The decode backend that serves this cache for queries of this dtype (the weights' by default)."""
        return self._serving(cache, self.weight.dtype if dtype is None else dtype).backend

    def _serving(self, cache: LayerCache, dtype: torch.dtype) -> ServedCache:
        served = self._backends.serving(cache, dtype)
        self._note("decode_backend", served.selection)
        return served

    @contextlib.contextmanager
    def long_sequence_at_evaluation(
        self,
        config: LongSequenceConfig,
        *,
        summarizer: str | None = None,
        registry: Registry | None = None,
    ) -> Iterator[LongSequencePath]:
        """Within: in evaluation mode, without a cache and without a mask, the long-sequence path is taken.

        config: its `enabled` and `threshold` play no part. summarizer: a plugin's name; None and `auto` are
        this layer's own, or `mean` where it has none. Raises UnsupportedError for a layout without a
        semantic path and for a summarizer whose weights this layer was not trained with.
        """
        path = evaluation_path(
            config,
            summarizer=summarizer,
            own=Part("summarizer", self.summarizer, self._summarizer_part.selection),
            trained=self.long_sequence,
            shape=self.shape,
            device=self.weight.device,
            registry=self._backends.registry if registry is None else registry,
        )
        before, self._at_evaluation = self._at_evaluation, path
        try:
            yield path
        finally:
            self._at_evaluation = before

    @contextlib.contextmanager
    def exact_in_training(self) -> Iterator[None]:
        """Within: exact attention in training mode too, whatever the length."""
        before, self._exact_in_training = self._exact_in_training, True
        try:
            yield
        finally:
            self._exact_in_training = before

    def check_every_call(self, wanted: bool = True) -> bool:
        """Look at the values that plugins return in every call, not in the first one alone (`strict`).
        Returns whether that was so before.
        """
        before = self._backends.every_call
        for part in (
            self._gate_part,
            self._null_part,
            self._summarizer_part,
            self._backends,
        ):
            part.every_call = wanted
        return before

    def pack(self, pack: Pack) -> list[str]:
        """Pack every projection, for inference alone. Gives the names of those that stay as they are."""
        return pack_projections(self, pack) + pack_child(self, "out_proj", pack)

    @property
    def weight(self) -> Tensor:
        """A matrix of this layer, for its device and dtype."""
        return weight_of(self.out_proj)

    def extra_repr(self) -> str:
        """The layout and its sizes, in one line."""
        shape = self.shape
        sem_heads, kv_heads, v_heads = shape.cached_heads
        sizes = {"d_model": shape.d_model, "n_heads": shape.n_heads, "n_kv_heads": kv_heads}
        own = {"sem_kv_heads": sem_heads, "v_kv_heads": v_heads}
        sizes |= {name: heads for name, heads in own.items() if heads != kv_heads}
        sizes |= {name: getattr(shape, name) for name in ("sem_head_dim", "geo_head_dim", "v_head_dim")}
        words = ", ".join(f"{name}={size}" for name, size in sizes.items())
        return f"layer {self.layer}: {self.config.mode}, {words}"

    def _uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The whole sequence at once, fused: [B, T, H, Dv]."""
        heads, null = packed_heads(self, x, gate=self._gate_of(x), null=self._null())
        out = fused_attention(
            heads,
            null=null,
            mask=None if mask is None else mask[(None,) * (4 - mask.dim())],
            dropout_p=self._dropout_p,
        )
        return out[..., : self.shape.v_head_dim]

    def _long_path(self, q_len: int, mask: Tensor | None) -> LongSequencePath | None:
        """The long-sequence path where nothing but causality restricts what is seen: in training from the
        threshold on, at evaluation within `long_sequence_at_evaluation`; None where it would be exact.
        """
        if mask is not None:
            return None
        path = self._at_evaluation
        if self.training:
            if self.long_sequence is None or self.summarizer is None or self._exact_in_training:
                return None
            path = LongSequencePath(self.long_sequence, self.summarizer)
        return path if path is not None and path.applies(q_len) else None

    def _long(self, x: Tensor, path: LongSequencePath) -> Tensor:
        """The long-sequence path: memory tokens for the far past: [B, T, H, Dv]."""
        heads = self._heads(x, *self.rope.span(0, x.shape[1], x)).shared()
        out = long_sequence_attention(
            heads,
            plan=path.plan(x.shape[1]),
            summarizer=self._summarizer_part.summarizer(path.summarizer, path.selection),
            null=self._null(),
            dropout_p=self._dropout_p,
        )
        return out.transpose(1, 2)

    @uncompiled
    def _cached(self, x: Tensor, cache: LayerCache, counts: Sequence[int] | None) -> Tensor:
        """Append the tokens and attend to what the cache then holds: [B, T, H, Dv]."""
        batch, q_len, _ = x.shape
        if counts is not None:
            counts = whole_numbers(counts) or counts
        if q_len == 0:
            return x.new_zeros(batch, 0, self.shape.n_heads, self.shape.v_head_dim)
        if q_len > 1 or not cache.length:
            self._one_matrix = None
        heads = self._heads(x, *self._angles_after(cache, q_len, x))
        served = self._serving(cache, heads.q_geo.dtype)
        with without_autocast(x.device):
            if q_len > 1:
                return prefill_attention(
                    heads, cache, null=self._null(), counts=counts, writer=served.writer
                ).transpose(1, 2)
            cache.append(heads.k_sem, heads.k_geo, heads.v, counts=counts, writer=served.writer)
            return self._decode(heads, cache, counts, served).unsqueeze(1)

    def _decode(
        self, heads: Heads, cache: LayerCache, counts: Sequence[int] | None, served: ServedCache
    ) -> Tensor:
        """One token per row, which the cache holds: [B, H, Dv]."""
        q_sem, q_geo = heads.q_sem.select(2, 0), heads.q_geo.select(2, 0)
        out = served.decode(q_sem, q_geo, cache, null=self._null(), every_call=self._backends.every_call)
        if counts is None or all(counts):
            return out
        took = torch.tensor(list(counts), device=out.device, dtype=torch.bool)
        return torch.where(took[:, None, None], out, 0.0)

    def _angles_after(self, cache: LayerCache, q_len: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions that q_len new tokens take: the rows' lengths onwards."""
        lengths, start = cache.lengths, cache.length
        if cache.capturing:  # a replay has other lengths, and past the capacity nothing is written
            positions = cache.lengths_device.unsqueeze(1) + torch.arange(q_len, device=x.device)  # [B, T]
            return self.rope.at(positions.clamp_max_(cache.capacity - 1), cache.capacity, x)
        if min(lengths) == start:
            return self.rope.span(start, start + q_len, x)
        positions = cache.lengths_device.unsqueeze(1) + torch.arange(q_len, device=x.device)
        return self.rope.at(positions, start + q_len, x)

    def _heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        gate = self._gate_of(x)
        heads = self.project_token(x, cos, sin, gate) if x.shape[1] == 1 else None
        return self.project(x, cos, sin).gated(gate) if heads is None else heads

    def _gate_of(self, x: Tensor) -> Tensor | None:
        """[B, H, T, 1]; None without a gate."""
        if self.gate is None:
            return None
        return self._gate_part.gate(self.gate, x, n_heads=self.shape.n_heads)

    def _null(self) -> NullKV | None:
        if self.null_token is None:
            return None
        device = self.weight.device
        return self._null_part.null(self.null_token, shape=self.shape, device=device)

    @property
    def _dropout_p(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _note(self, kind: Kind, selection: Selection | None) -> None:
        if selection is not None:
            self.selections[kind] = selection
