"""The learning rate of each step: linear warmup, then a cosine from the peak to its floor.

    warmup, s < w:   lr (s + 1) / w
    after it:        floor + (lr - floor) (1 + cos(pi p)) / 2
    p = (s + 1 - w) / (n - w),    floor = min_lr_ratio lr

with s the steps already taken, w the warmup steps and n all steps: step w - 1 has the peak, the last one
the floor. A pure function of the step, so a resumed run needs no state of it. Called by training.loop.
"""

from __future__ import annotations

import math

from dba_core.config.training import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of the optimizer step that follows `step` finished ones."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step + 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_lr_ratio * config.lr
    return floor + (config.lr - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
