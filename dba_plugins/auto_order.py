"""The order in which `auto` tries the built-in plugins of each kind: the first that supports the request is taken."""

from __future__ import annotations

AUTO_ORDER: dict[str, tuple[str, ...]] = {
    "summarizer": ("conv", "linear", "mean"),
    "gate": ("causal", "none"),
    "null_token": ("none",),
    "decode_backend": ("streaming",),
}
