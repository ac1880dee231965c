"""Rotation frequencies of pretrained models that stretch RoPE over longer contexts.

    default, linear     f_i = theta^(-2i/D) / factor
    llama3              long wavelengths divided by factor, short ones kept, a blend between (Llama 3.1)

Called by the loaders. Other variants are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dba_core.attention.rope import rope_frequencies
from dba_core.errors import UnsupportedError

SUPPORTED = ("default", "linear", "llama3")


def scaled_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None) -> Tensor | None:
    """Radians per token of each pair, float64 [head_dim/2]; None where the series of theta is meant.

    scaling: `rope_scaling` or `rope_parameters` of a config.json. Raises UnsupportedError for a variant that
    is not one of SUPPORTED, and for one whose numbers are missing.
    """
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type", "default"))
    if scaling is None or kind == "default":
        return None
    if kind == "linear":
        return rope_frequencies(head_dim, theta) / _number(scaling, "factor", kind)
    if kind == "llama3":
        return _llama3(rope_frequencies(head_dim, theta), scaling)
    raise UnsupportedError(
        f"RoPE scaling {kind!r} is not supported; supported: {', '.join(SUPPORTED)}. Its frequencies depend "
        "on the length of the text, which a cache of rotated keys cannot follow. Give a model without it"
    )


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    factor, low, high, original = (
        _number(scaling, key, "llama3")
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelength = 2 * math.pi / frequencies
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)  # 0: long, 1: short
    return (1 - blend) * frequencies / factor + blend * frequencies


def _number(scaling: Mapping[str, Any], key: str, kind: str) -> float:
    value = scaling.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UnsupportedError(
            f"RoPE scaling {kind!r} needs {key} > 0, got {value!r}; the model's configuration is incomplete"
        )
    return float(value)


def per_head(frequencies: Tensor | None, n_kv_heads: int) -> Tensor | None:
    """[D/2] -> [G, D/2]."""
    return None if frequencies is None else torch.as_tensor(frequencies).expand(n_kv_heads, -1)
