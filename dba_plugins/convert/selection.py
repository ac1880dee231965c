"""Which channel pairs lose their rotation: per layer and KV head, those that lose the least by a measure.

    kl     the measured change of the attention distribution (`calibration`), after the fit where there is one
    norm   the mean length in queries times that in keys (MHA2MLA: Ji et al. 2025, arXiv:2502.14837)
    low    the frequency itself: the slowest pairs first

A small table and not a kind of plugin: a rule runs once, on one machine, and leaves nothing in the model but
its choice, so nobody who loads the model needs it (docs/decisions/pair-selection.md). Called by `decouple`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dba_core.errors import UsageError, unknown
from dba_plugins.convert.calibration import Calibration, LayerCalibration

#: layer, frequencies [P], fit -> what unrotating each pair costs [G,P]; only the order within a row matters.
Rule = Callable[[LayerCalibration, Tensor, bool], Tensor]


def _kl(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return layer.residual if fit else layer.damage


def _norm(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return layer.q_norm * layer.k_norm


def _low(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return frequencies.expand_as(layer.damage)


RULES: dict[str, Rule] = {"kl": _kl, "norm": _norm, "low": _low}


def select_pairs(
    calibration: Calibration, frequencies: Tensor, *, pairs: int, rule: str, fit: bool = True
) -> Tensor:
    """The pairs that become semantic, ascending: int64 [layers, G, pairs].

    fit: whether queries get the factors of `LayerCalibration.fit`. frequencies: radians per token of the
    source's pairs [G or 1, P]. Raises UsageError for a rule that does not exist and for a number of pairs
    that leaves nothing on one side.
    """
    if rule not in RULES:
        raise UsageError(unknown("selection rule", rule, RULES))
    n_pairs = frequencies.shape[-1]
    if not 1 <= pairs < n_pairs:
        raise UsageError(
            f"{pairs} pairs cannot become semantic; allowed: 1 to {n_pairs - 1}, since a head has {n_pairs} "
            "pairs and at least one stays rotated"
        )
    costs = [RULES[rule](layer, frequencies, fit) for layer in calibration.layers]
    chosen = [cost.argsort(dim=-1, stable=True)[:, :pairs].sort(dim=-1).values for cost in costs]
    return torch.stack(chosen)
