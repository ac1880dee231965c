"""llama.cpp through llama-cpp-python, to be measured beside: the same GGUF file, its cache in float16.

The package is no dependency and nothing installs it; where it is missing the report says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dba_core.config.model import ResolvedModel
from dba_core.data.batches import held_out_windows
from dba_core.data.tokenizers import Tokens
from dba_plugins.bench.model.contestants import FIRST, Prompts, Turn

PACKAGE = "llama_cpp"


def why_left_out(source: Path) -> str | None:
    """None where it can take part."""
    if not (source.is_file() and source.suffix.lower() == ".gguf"):
        return f"llama.cpp was left out: it reads .gguf files, and {source.name} is none"
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "llama.cpp was left out: llama-cpp-python is not installed; python -m pip install "
            "llama-cpp-python compiles it (DBA needs it for nothing else)"
        )
    return None


def name_of(*, flash: bool) -> str:
    return f"llama.cpp, fp16 cache{', flash attention' if flash else ''}"


def what_it_is() -> str:
    """Its version, and the instruction sets that it says it was compiled for."""
    package = importlib.import_module(PACKAGE)
    built = bytes(package.llama_print_system_info()).decode().strip()
    return f"llama.cpp of llama-cpp-python {package.__version__}: {built}"


class LlamaCpp:
    """One sequence, as `llama_cpp.Llama` holds it. flash: its fused attention."""

    ours = False

    def __init__(self, path: Path, config: ResolvedModel, *, flash: bool) -> None:
        self.name = name_of(flash=flash)
        self._package: Any = importlib.import_module(PACKAGE)
        self._path, self._config, self._flash = path, config, flash
        self.weight_bytes = int(self._package.llama_model_size(self._open(32).model))

    def left_out(self, *, phase: str, batch: int, length: int) -> str | None:
        return None if batch == 1 else "several sequences, which llama_cpp.Llama does not hold"

    def cache_bytes(self, *, batch: int, length: int) -> int:
        shape = self._config.attention.shape
        values = shape.n_kv_heads * (shape.sem_head_dim + shape.geo_head_dim + shape.v_head_dim)
        return 2 * batch * length * self._config.n_layers * values

    def work_bytes(self, *, batch: int, length: int) -> int:
        return 0

    def prefill(self, prompts: Prompts) -> Turn:
        (prompt,) = prompts
        llama = self._open(len(prompt) + 1)

        def call(_round: int) -> None:
            llama.reset()
            llama.eval(prompt)
            self._argmax(llama)

        return Turn(call=call)

    def decode(self, prompts: Prompts, *, new_tokens: int) -> Turn:
        """After the prompt itself, which it reads here: its cache takes no other keys."""
        (prompt,) = prompts
        llama = self._open(len(prompt) + new_tokens + 1)
        llama.eval(prompt)

        def call(_round: int) -> None:
            llama.n_tokens = len(prompt)  # the next `eval` forgets what came after
            token = FIRST
            for _ in range(new_tokens):
                llama.eval([token])
                token = self._argmax(llama)

        return Turn(call=call)

    def loss(self, tokens: Tokens, *, context: int, limit: int) -> float | None:
        llama = self._open(context + 1, logits_all=True)
        total, seen = 0.0, 0
        for x, y in held_out_windows(tokens, context, limit_tokens=limit):
            llama.reset()
            llama.eval(x[0].tolist())
            logits = torch.from_numpy(np.array(llama.scores[: x.shape[1]]))  # [T, V]
            total += float(F.cross_entropy(logits.double(), y[0], reduction="sum"))
            seen += y.numel()
        return total / seen

    def alone(self, *, length: int, new_tokens: int) -> tuple[str, str]:
        """The module of a process that decodes as `decode`, and what it is given."""
        return f"{__package__}.llama_cpp_alone", json.dumps(
            {
                "settings": self._settings(length + new_tokens + 1, logits_all=False),
                "prompt": [FIRST] * length,
                "new_tokens": new_tokens,
            }
        )

    def _open(self, capacity: int, *, logits_all: bool = False) -> Any:
        return self._package.Llama(**self._settings(capacity, logits_all=logits_all))

    def _settings(self, capacity: int, *, logits_all: bool) -> dict[str, Any]:
        threads = torch.get_num_threads()
        return {
            "model_path": str(self._path),
            "n_ctx": capacity,
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn": self._flash,
            "logits_all": logits_all,
            "verbose": False,
        }

    def _argmax(self, llama: Any) -> int:
        """Of the logits after the last token that was read."""
        pointer = self._package.llama_get_logits(llama.ctx)
        return int(np.ctypeslib.as_array(pointer, shape=(self._config.vocab_size,)).argmax())
