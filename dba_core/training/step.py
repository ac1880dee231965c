"""One optimizer step: its learning rate, the gradients of the global batch, and AdamW.

    gradient = mean over processes and accumulation parts of d loss / d w

    warmup, s < w:   lr (s + 1) / w
    after it:        floor + (lr - floor) (1 + cos(pi p)) / 2
    p = (s + 1 - w) / (n - w),    floor = min_lr_ratio lr

with s the steps already taken, w the warmup steps and n all steps: step w - 1 has the peak, the last one the
floor. Gradients and their application are two calls, so that the loop can refuse a loss that is not finite
before it reaches the weights. AdamW (Loshchilov and Hutter 2019) decays matrices only: not vectors (norms,
biases, temperatures, gate biases), nor null tokens, which are one vector per KV head.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dba_core.config.run import RunConfig, TrainingConfig
from dba_core.model.language_model import LanguageModel
from dba_core.training.distributed import World

#: The module that holds a layer's null token.
NULL_TOKEN = ".null_token."


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of the step that follows `step` finished ones; a resumed run needs no state of it."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step + 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_lr_ratio * config.lr
    return floor + (config.lr - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters in two groups, the decayed one first; the rate is set before every step."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() >= 2 and NULL_TOKEN not in name else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


@attrs.frozen(kw_only=True)
class Gradients:
    """loss: mean over the global batch. grad_norm: L2 before clipping.

    stop, save: a process asked to stop, or for a checkpoint after this step.
    """

    loss: float
    grad_norm: float
    stop: bool
    save: bool


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """The forward pass's number format: autocast for `bfloat16` over float32 weights, none for `float32`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


class TrainingStep:
    """The model, its optimizer and how a batch becomes a step."""

    def __init__(
        self, model: LanguageModel, optimizer: torch.optim.Optimizer, config: RunConfig, world: World
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.world = world
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._loss = torch.compile(model.loss) if config.training.compile else model.loss
        self._norm = torch.zeros(())

    def gradients(
        self, tokens: Tensor, targets: Tensor, *, stop: bool = False, save: bool = False
    ) -> Gradients:
        """tokens, targets [B / processes, T]: this process's part of the global batch, on the CPU.

        Leaves the global mean gradient in `.grad`. stop, save: this process wants to stop, or wants a
        checkpoint; the answer says whether any does, the same on all.
        """
        self.model.check_tokens(tokens)
        accumulate = self.config.training.grad_accum
        total = torch.zeros((), device=self.world.device)
        for part, wanted in zip(
            self._on_device(tokens).chunk(accumulate), self._on_device(targets).chunk(accumulate), strict=True
        ):
            with autocast(self.world.device, self.config.dtype):
                loss = self._loss(part, wanted) / accumulate
            torch.autograd.backward(loss)
            total += loss.detach()
        total, stopping, saving = self._over_processes(total, stop, save)
        self._norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        loss_value, norm_value = torch.stack([total, self._norm]).tolist()
        return Gradients(loss=loss_value, grad_norm=norm_value, stop=stopping, save=saving)

    def apply(self, *, lr: float) -> None:
        """Clip the gradients and take the step at this learning rate."""
        limit = self.config.training.grad_clip
        if limit > 0:
            clip_grads_with_norm_(self._parameters, limit, self._norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _on_device(self, tokens: Tensor) -> Tensor:
        if self.world.device.type != "cuda":
            return tokens.to(self.world.device)
        return tokens.pin_memory().to(self.world.device, non_blocking=True)

    def _over_processes(self, loss: Tensor, stop: bool, save: bool) -> tuple[Tensor, bool, bool]:
        """Mean loss, whether any process stops or saves, and mean gradients in place.

        A parameter that had no gradient on one process gets zeros there; one that had none anywhere keeps
        none, as in a single process, so that the optimizer leaves it alone.
        """
        if self.world.size == 1:
            return loss, stop, save
        told = [float(stop), float(save), *(float(p.grad is not None) for p in self._parameters)]
        sums = self.world.sum(torch.cat([loss.view(1), torch.tensor(told, device=loss.device)]))
        used = (sums[3:] > 0).tolist()
        shared = [p for p, is_used in zip(self._parameters, used, strict=True) if is_used]
        for p in shared:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.world.all_reduce_mean([p.grad for p in shared])
        return sums[0] / self.world.size, bool(sums[1] > 0), bool(sums[2] > 0)
