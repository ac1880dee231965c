"""The initial weights of a language model, each parameter from a generator of its own:

    generator(seed, name) = torch.Generator seeded by SHA-256(seed, name)
    matrices                          N(0, STD^2)
    projections back into the stream  N(0, STD^2 / (2 n_layers))        (GPT-2: one addition per branch)

So exchanging a gate, a null token or a summarizer changes no other parameter. Vectors (norms, biases,
temperatures) keep what their modules set. Plugin modules initialize themselves: the neutral gate, the zero
null token and the summarizer that equals `mean` depend on it. Called by model.language_model.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

STD = 0.02
#: The modules that plugins build, as parts of a dotted parameter name.
PLUGIN_MODULES = ("attn.gate.", "attn.null_token.", "attn.summarizer.")
#: The projections whose output is added to the residual stream.
RESIDUAL_OUTPUTS = ("attn.out_proj.weight", "ff.w_down.weight")


def seed_of(seed: int, name: str) -> int:
    """A 63-bit seed that depends on both; equal on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def is_plugin_parameter(name: str) -> bool:
    """Whether the parameter of this dotted name belongs to a gate, a null token or a summarizer."""
    return any(part in name for part in PLUGIN_MODULES)


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int, n_layers: int) -> None:
    """Draw every matrix of the model that is not a plugin's, in place, on the CPU."""
    for name, parameter in model.named_parameters():
        if is_plugin_parameter(name) or parameter.dim() < 2:
            continue
        std = STD * (2 * n_layers) ** -0.5 if name.endswith(RESIDUAL_OUTPUTS) else STD
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        parameter.normal_(0.0, std, generator=generator)
