"""Healing: a few steps in which the source teaches the converted model's query and key projections.

    loss = mean over positions of KL( softmax(source logits) || softmax(converted logits) )

Only q and k projections learn; everything else is the source's. What comes out is kept where it lowers the
same divergence on sequences that were not trained on, and undone otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.errors import UsageError
from dba_core.model.language_model import LanguageModel, inference

#: Tokens of one step.
LENGTH = 256
_LR = 2e-5
_NAMES = ("attn.q_sem.weight", "attn.k_sem.weight", "attn.q_geo.weight", "attn.k_geo.weight")


@attrs.frozen(kw_only=True)
class Healing:
    """Divergence in nats per token on sequences held out of the training, before and after."""

    steps: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before

    @property
    def text(self) -> str:
        verdict = "kept" if self.kept else "undone, because it made the model worse"
        return (
            f"healing for {self.steps} steps: divergence on held-out sequences {self.before:.5f} -> "
            f"{self.after:.5f} nats per token, {verdict}"
        )


def heal(
    *,
    teacher: LanguageModel,
    student: LanguageModel,
    sequences: Tensor,
    steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> Healing:
    """Train `student` in place on pieces of sequences [N,T]; its last fifth is held out.

    Raises UsageError where the sequences hold less than two pieces of LENGTH tokens.
    """
    pieces = sequences.flatten()
    pieces = pieces[: len(pieces) // LENGTH * LENGTH].view(-1, LENGTH)
    if len(pieces) < 2:
        raise UsageError(
            f"healing needs {2 * LENGTH} tokens of calibration text, got {sequences.numel()}; give more "
            "with --calibrate-tokens"
        )
    held = max(1, len(pieces) // 5)
    train, test = pieces[:-held], pieces[-held:]
    before = _divergence(teacher, student, test)
    start = copy.deepcopy({name: p for name, p in student.state_dict().items() if name.endswith(_NAMES)})
    learned = [p for name, p in student.named_parameters() if name.endswith(_NAMES)]
    optimizer = torch.optim.AdamW(learned, lr=_LR, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1.0 - step / steps)
        tokens = train[order[step % len(order)]][None]
        with inference(teacher):
            target = teacher(tokens).log_softmax(-1)
        gradients = torch.autograd.grad(_kl(target, student(tokens).log_softmax(-1)), learned)
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        on_step()
    for parameter in learned:
        parameter.grad = None
    healing = Healing(steps=steps, before=before, after=_divergence(teacher, student, test))
    if not healing.kept:
        student.load_state_dict(start, strict=False)
    return healing


def _divergence(teacher: LanguageModel, student: LanguageModel, pieces: Tensor) -> float:
    with inference(teacher), inference(student):
        values = [
            float(_kl(teacher(row[None]).log_softmax(-1), student(row[None]).log_softmax(-1)))
            for row in pieces
        ]
    return sum(values) / len(values)


def _kl(target: Tensor, logp: Tensor) -> Tensor:
    """log-probabilities [1,T,V] twice -> nats per token."""
    return F.kl_div(logp, target, log_target=True, reduction="none").sum(-1).mean()
