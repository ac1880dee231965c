"""The language model: token embedding, pre-norm blocks, final norm, head.

    h_0 = tok_emb[token] (emb_in)        logits = ln_f(h_n) (emb_out) head^T

`head` is the embedding itself (tied) or `lm_head`; `emb_in` / `emb_out` exist only where the embedding is
narrower than the model. Nothing but the attention knows positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.attention.inputs import uncompiled, weight_of
from dba_core.attention.long_sequence.evaluation import UsedLongSequence
from dba_core.attention.module import DecoupledAttention
from dba_core.attention.packed import Packed, PackedEmbedding, pack_child
from dba_core.cache.append_checks import whole_number
from dba_core.cache.bytes import memory_table
from dba_core.cache.kv_cache import KVCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.contracts import Pack, WeightRequest
from dba_core.errors import CacheError, DataError, UnsupportedError
from dba_core.free_memory import many, require_memory
from dba_core.model.block import Block, build_norm
from dba_core.model.weights import initialize, seed_of
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice, PluginChoices, by_layer

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LanguageModel(nn.Module):
    """A decoder-only transformer over `config.vocab_size` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        plugins: PluginChoices | None = None,
        registry: Registry | None = None,
        seed: int = 0,
        device: str = "cpu",
        shapes_only: bool = False,
        attentions: Sequence[DecoupledAttention] | None = None,
    ) -> None:
        """plugins: a choice per kind, for all layers or for some; None is `auto`. registry: None is the one
        of this process. attentions: one per layer, used as they are, weights included: no plugin is chosen.

        The weights depend on `seed` alone: they are drawn on the CPU and then moved, so they are the same on
        every device. The caller's random state is left as it was. Built under `torch.device("meta")`, or with
        shapes_only, the model has no numbers: `to_empty(device=...)`, then `load_state_dict`. shapes_only:
        plugins are chosen as for `device` all the same.
        """
        super().__init__()
        self.config = config = config.resolved()
        #: the format that the weights were packed by, None as long as they are parameters
        self.weight_format: str | None = None
        self._n_packed = 0
        plugins = PluginChoices() if plugins is None else plugins
        plugins.check_layers(config.n_layers)
        narrow = config.embed_dim != config.d_model
        nowhere = torch.device("meta") if shapes_only else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), nowhere:
            self.tok_emb: nn.Embedding | PackedEmbedding = nn.Embedding(config.vocab_size, config.embed_dim)
            self.emb_in = nn.Linear(config.embed_dim, config.d_model, bias=False) if narrow else None
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(
                Block(config, attention)
                for attention in attentions
                or _attentions(config, plugins, registry, seed=seed, device=device)
            )
            self.ln_f = build_norm(config)
            self.emb_out = nn.Linear(config.d_model, config.embed_dim, bias=False) if narrow else None
            tied = config.tie_embeddings
            self.lm_head = None if tied else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        initialize(self, seed=seed, n_layers=config.n_layers, but=attentions or ())
        if self.device.type != "meta":
            self.to(device)

    def forward(
        self, tokens: Tensor, *, cache: KVCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """tokens [B, T] integers -> logits [B, T, V].

        With a cache the tokens continue the cached sequences (prefill in chunks of any size, or decode with
        T = 1) and are appended in every layer or, when a layer fails, in none. counts: of row b only the
        first counts[b] tokens are real; the logits after them mean nothing. Raises DataError for a token
        out of the vocabulary and CacheError for a cache of another model.
        """
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            return self.logits(self.hidden(tokens, cache=cache, counts=counts))

    def hidden(
        self, tokens: Tensor, *, cache: KVCache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """tokens [B, T] -> the last block's output [B, T, d_model]; its `logits` are what `forward` gives.
        cache, counts: as there.
        """
        self.check_tokens(tokens)
        if tokens.device != self.device:
            raise DataError(
                f"tokens are on {tokens.device}, the model on {self.device}; "
                f"give tokens.to({str(self.device)!r})"
            )
        if cache is not None:
            return self._cached(tokens, cache, counts)
        if counts is not None:
            raise CacheError(
                f"counts={counts!r} without a cache; counts say how many tokens a cache row takes"
            )
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The last block's output [B, T, d_model] -> logits [B, T, V]; every position for itself."""
        x = self.ln_f(x)
        if self.emb_out is not None:
            x = self.emb_out(x)  # [B, T, embed_dim]
        if self.lm_head is not None:
            out: Tensor = self.lm_head(x)
            return out
        tied = self.tok_emb
        return tied.product(x) if isinstance(tied, PackedEmbedding) else F.linear(x, tied.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of targets [B, T] given tokens [B, T], a float32 scalar in nats."""
        logits = self(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def new_cache(
        self, *, batch: int, capacity: int, policy: KVCachePolicy | str, rollback: int | None = None
    ) -> KVCache:
        """An empty cache for `batch` sequences of at most `capacity` tokens in every layer.

        Raises NotEnoughMemoryError, before anything is allocated, for one that cannot fit.
        """
        batch, capacity, rollback = map(whole_number, (batch, capacity, rollback))
        parsed = KVCachePolicy.parse(policy) if isinstance(policy, str) else policy
        shape = self.attentions[0].shape
        (row,) = memory_table(shape, len(self.blocks), parsed, (capacity,), rollback=rollback)
        require_memory(
            batch * row.kv_bytes,
            device=str(self.device),
            what=f"a KV cache for {many(batch)} sequence(s) of {many(capacity)} tokens ({parsed.short})",
            smaller="the number of tokens or of sequences (or choose a smaller KV policy)",
        )
        return KVCache(
            [
                attention.new_cache(batch=batch, capacity=capacity, policy=policy, rollback=rollback)
                for attention in self.attentions
            ]
        )

    @contextlib.contextmanager
    def long_sequence(
        self,
        config: LongSequenceConfig,
        *,
        summarizer: str | None = None,
    ) -> Iterator[UsedLongSequence]:
        """Within: evaluated, this model reads the far past as `config` says (exact attention is the rule).

        Gives what is used: every number, and the summarizer's name. Where a number is None it is chosen from
        the device and the model's context; summarizer: None is each layer's own, or `mean` where it has none.
        `enabled` and `threshold` play no part, and neither training nor a pass with a cache changes. Raises
        UnsupportedError as `DecoupledAttention.long_sequence_at_evaluation` does.
        """
        resolved = config.resolved(context=self.config.context, device=self.device.type)
        with contextlib.ExitStack() as stack:
            paths = [
                stack.enter_context(attention.long_sequence_at_evaluation(resolved, summarizer=summarizer))
                for attention in self.attentions
            ]
            names = by_layer([path.name for path in paths])
            yield UsedLongSequence(config=paths[0].config, summarizer=names)

    @contextlib.contextmanager
    def exact_in_training(self) -> Iterator[None]:
        """Within: training uses exact attention in every layer, whatever the length."""
        with contextlib.ExitStack() as stack:
            for attention in self.attentions:
                stack.enter_context(attention.exact_in_training())
            yield

    def pack_weights(self, choice: str | PluginChoice, *, registry: Registry | None = None) -> list[str]:
        """Pack every matrix by a weight format (`int8`, say), in place: from then on the model is only run.
        `auto` takes one that loses nothing of the weights' dtype.

        Gives the names of the modules that stay as they are, because more happens in them than a product (an
        adapter, a hook), and of the parts that plugins made. Raises UnsupportedError where the format does
        not take a weight, before anything is packed, and for a model that is packed already.
        """
        if isinstance(self.tok_emb, PackedEmbedding):
            raise UnsupportedError(
                "the weights are packed already; load the model again to pack it otherwise"
            )
        chosen = PluginChoice(choice) if isinstance(choice, str) else choice
        weight = self.tok_emb.weight
        rows, columns = weight.shape
        request = WeightRequest(
            rows=rows,
            columns=columns,
            device=str(weight.device),
            dtype=str(weight.dtype).removeprefix("torch."),
        )
        registry = Registry.default() if registry is None else registry
        selection = registry.select("weight_format", chosen, request)
        chosen = attrs.evolve(chosen, name=selection.name)
        pack: Pack = selection.build()
        pack_table: Pack = registry.select("weight_format", chosen, attrs.evolve(request, table=True)).build()
        before = self.n_parameters
        left = [each for name in ("emb_in", "emb_out") for each in pack_child(self, name, pack)]
        left += pack_child(self, "lm_head", pack_table)
        for number, block in enumerate(cast("Iterable[Block]", self.blocks)):
            inside = [f"attn.{name}" for name in block.attn.pack(pack)]
            inside += [f"ff.{name}" for name in block.ff.pack(pack)]
            left += [f"blocks.{number}.{name}" for name in inside]
        self.tok_emb = PackedEmbedding(pack_table, weight)
        self.weight_format, self._n_packed = chosen.name, before - self.n_parameters
        self.register_state_dict_pre_hook(_refuse_to_save)  # type: ignore[no-untyped-call]
        return left

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise DataError unless tokens is [B, T] of integers inside the vocabulary.

        The range is only looked at where that is cheap: on the CPU and outside compiled code. Tokens on
        their way to another device are checked before they leave (training.step, generation).
        """
        if not isinstance(tokens, Tensor):
            raise DataError(
                f"tokens are a {type(tokens).__name__}; give a tensor of integers [batch, tokens], "
                "torch.tensor([tokens]) say"
            )
        if tokens.dim() != 2 or tokens.dtype not in _INTEGERS:
            raise DataError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; give integers [batch, tokens]"
            )
        if torch.compiler.is_compiling() or tokens.device.type != "cpu" or tokens.numel() == 0:
            return
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= self.tok_emb.num_embeddings:
            raise DataError(
                f"token {low if low < 0 else high} is out of the vocabulary; this model knows 0 to "
                f"{self.tok_emb.num_embeddings - 1}; encode with the tokenizer that it was trained with"
            )

    @property
    def attentions(self) -> list[DecoupledAttention]:
        """The attention of every layer, first layer first."""
        return [block.attn for block in cast("Iterable[Block]", self.blocks)]

    def decode_backends(self, cache: KVCache) -> str:
        """The names of the decode backends that serve this cache, with their layers where they differ."""
        pairs = zip(self.attentions, cache.layers, strict=True)
        return by_layer([attention.decode_selection(layer).name for attention, layer in pairs])

    @property
    def device(self) -> torch.device:
        return weight_of(self.tok_emb).device

    @property
    def n_parameters(self) -> int:
        """Numbers that were trained, or can be; a tied embedding counts once."""
        return self._n_packed + sum(parameter.numel() for parameter in self.parameters())

    @property
    def weight_bytes(self) -> int:
        """What parameters, buffers and packed weights take of memory."""
        packed = [module.packed.nbytes for module in self.modules() if isinstance(module, Packed)]
        return sum(packed) + sum(each.nbytes for each in (*self.parameters(), *self.buffers()))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> what the first block is given, [B, T, d_model]."""
        x = self.tok_emb(tokens.long())  # [B, T, embed_dim]
        if self.emb_in is not None:
            x = self.emb_in(x)
        dropped: Tensor = self.dropout(x)
        return dropped

    @uncompiled
    @torch.no_grad()
    def _cached(self, tokens: Tensor, cache: KVCache, counts: Sequence[int] | None) -> Tensor:
        """The same through every layer's cache; without gradients, since a cache holds none."""
        if not isinstance(cache, KVCache):
            raise CacheError(f"cache is a {type(cache).__name__}; give what new_cache of this model makes")
        if len(cache.layers) != len(self.blocks):
            raise CacheError(
                f"the cache has {len(cache.layers)} layers and the model {len(self.blocks)}; make it with "
                "new_cache of the same model"
            )
        cache.check_in_step()
        x = self.embed(tokens)
        with _all_or_nothing(cache):
            for block, layer in zip(self.blocks, cache.layers, strict=True):
                x = block(x, cache=layer, counts=counts)
        return x


def _refuse_to_save(*_: object) -> None:
    raise UnsupportedError(
        "the weights are packed: what they were is gone; save the model before it is packed"
    )


@contextlib.contextmanager
def _all_or_nothing(cache: KVCache) -> Iterator[None]:
    """When a layer fails, take back what the layers before it appended, wherever that is exact.

    A layer whose residual window no longer reaches back keeps its tokens; the next use then fails at
    `check_in_step`, which names the lengths, instead of computing with layers that are out of step.
    """
    before = [layer.lengths for layer in cache.layers]
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            for layer, lengths in zip(cache.layers, before, strict=True):
                with contextlib.suppress(CacheError):
                    layer.truncate(lengths)


def _attentions(
    config: ResolvedModel, plugins: PluginChoices, registry: Registry | None, *, seed: int, device: str
) -> Iterator[DecoupledAttention]:
    """Each layer's with its own choices. Plugins that draw numbers at random draw the same ones whatever the
    other layers hold.
    """
    for layer in range(config.n_layers):
        torch.default_generator.manual_seed(seed_of(seed, f"blocks.{layer}.attn"))
        own = plugins.of_layer(layer)
        yield DecoupledAttention(
            config.attention,
            gate=own.gate,
            null_token=own.null_token,
            summarizer=own.summarizer,
            decode_backend=own.decode_backend,
            train_long_seq=config.train_long_seq,
            registry=registry,
            layer=layer,
            context=config.context,
            device=device,
        )


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Within: `model.eval()` and no gradients. Afterwards every submodule has the mode that it had.

    `torch.no_grad`, not `inference_mode`: tables that a module makes on first use stay usable in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
