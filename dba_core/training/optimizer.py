"""AdamW with decay on matrices only (Loshchilov and Hutter 2019).

Vectors (norms, biases, temperatures, gate biases) and null tokens, which are one vector per KV head, are
not decayed. The fused implementation is used wherever torch has one. Called by training.loop and
bench.train.
"""

from __future__ import annotations

import torch
from torch import nn

from dba_core.config.training import TrainingConfig

#: Device types for which torch ships a fused AdamW.
FUSED_DEVICES = ("cpu", "cuda")
#: The module that holds a layer's null token.
NULL_TOKEN = ".null_token."


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on the parameter of this dotted name."""
    return parameter.dim() >= 2 and NULL_TOKEN not in name


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters in two groups, the decayed one first; the rate is set before every step."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if is_decayed(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=all(p.device.type in FUSED_DEVICES for _, p in named),
    )
