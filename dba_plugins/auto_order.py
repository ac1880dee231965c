"""The order in which `auto` tries the built-in plugins of a kind; the first that supports the request runs.

Where the order depends on the device it is a mapping from device type ("*": all others).
"""

from __future__ import annotations

from collections.abc import Mapping

AUTO_ORDER: dict[str, tuple[str, ...] | Mapping[str, tuple[str, ...]]] = {
    "summarizer": {"cuda": ("conv", "linear", "mean"), "*": ("linear", "mean")},
    "gate": ("causal", "none"),
    "null_token": ("none",),
    "weight_format": ("bf16", "fp32"),
    "checkpoint_source": ("huggingface", "gguf", "origin"),
    "decode_backend": {
        "cpu": ("cpu", "streaming"),
        "cuda": ("triton_1pass", "triton_2pass", "streaming"),
        "*": ("streaming",),
    },
}
