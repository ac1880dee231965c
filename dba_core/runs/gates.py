"""The mean of the gate g over held-out tokens, per layer and head: what a trained model made of it.

    mean[layer][head] = average over tokens t of g_head(x_t)     0 geometric, 0.5 neutral, 1 semantic

Called by the job for the picture of the gates.
"""

from __future__ import annotations

from torch import Tensor, nn

from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_core.generation.inference import inference
from dba_core.model.language_model import LanguageModel

#: What a layer without a gate scores like.
NEUTRAL = 0.5


class _Mean:
    """Collects the output of one gate, [B,H,T,1] -> the mean of each head."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], gate: Tensor) -> None:
        sums = gate.double().sum(dim=(0, 2, 3))  # [H]
        self.total = sums if self.total is None else self.total + sums
        self.count += gate.shape[0] * gate.shape[2]

    @property
    def heads(self) -> list[float]:
        assert self.total is not None
        means: list[float] = (self.total / self.count).tolist()
        return means


def gate_means(
    model: LanguageModel, tokens: Tokens, *, context: int, limit_tokens: int, batch_size: int
) -> list[list[float]] | None:
    """Mean gate [n_layers][n_heads]; None for a model without gates. A layer without one is neutral, 0.5."""
    gates = [attention.gate for attention in model.attentions]
    means = {layer: _Mean() for layer, gate in enumerate(gates) if gate is not None}
    if not means:
        return None
    hooks = [gate.register_forward_hook(means[layer]) for layer, gate in enumerate(gates) if gate is not None]
    try:
        with inference(model):
            for x, _ in held_out_windows(tokens, context, limit_tokens=limit_tokens, batch_size=batch_size):
                model(x.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    neutral = [NEUTRAL] * model.config.attention.shape.n_heads
    return [means[layer].heads if layer in means else neutral for layer in range(len(gates))]
