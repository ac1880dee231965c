"""What a KV-cache policy costs: the same tokens decoded one by one with a cache of that policy and with an
fp32 cache, the logits compared at every position. Called by the evaluation of a run and by `dba eval`.

Both go through the model's decode path (T = 1), never through the training forward pass, so the figures hold
for what generation really does; an fp32 policy gives exactly zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.evaluation.metrics import FidelityAccumulator, FidelityMetrics
from dba_core.generation.inference import inference

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel


@attrs.frozen(kw_only=True)
class PolicyFidelity(FidelityMetrics):
    """The figures of one policy, and the decode backends that ran for it and for the fp32 reference."""

    policy: str
    backend: str
    reference_backend: str


def policy_fidelity(
    model: LanguageModel,
    tokens: Tokens,
    *,
    context: int,
    policy: KVCachePolicy | str,
    n_tokens: int,
    batch_size: int,
) -> PolicyFidelity:
    """Compare over the first `n_tokens` targets (fewer where `tokens` has fewer), in windows of `context`,
    `batch_size` windows at a time; each window starts with an empty cache.
    """
    chosen = KVCachePolicy.parse(policy) if isinstance(policy, str) else policy
    wide = KVCachePolicy.uniform("fp32")
    accumulator = FidelityAccumulator()
    backend = reference_backend = ""
    with inference(model):
        for x, y in held_out_windows(tokens, context, limit_tokens=n_tokens, batch_size=batch_size):
            x, y = x.to(model.device), y.to(model.device)
            batch, length = x.shape
            cache = model.new_cache(batch=batch, capacity=length, policy=chosen, rollback=0)
            exact = model.new_cache(batch=batch, capacity=length, policy=wide, rollback=0)
            backend, reference_backend = model.decode_backends(cache), model.decode_backends(exact)
            for t in range(length):
                token = x[:, t : t + 1]
                logits, reference = model(token, cache=cache), model(token, cache=exact)  # [B, 1, V]
                accumulator.update(reference, logits, y[:, t : t + 1], positions=torch.tensor([t]))
    return PolicyFidelity(
        **attrs.asdict(accumulator.result()),
        policy=chosen.short,
        backend=backend,
        reference_backend=reference_backend,
    )
