"""Load a Llama model from a GGUF file, quantized or not. Called by `load_source`.

The package `gguf` maps the file, reads its fields and dequantizes. llama.cpp rotates neighbouring channels
and stores the rows of q and k in that order; here the halves of a head are rotated (as Hugging Face does), so
the rows are put back:

    row (pair i, part j) of a head      ours: j * D/2 + i       in the file: 2 i + j
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dba_core.attention.rope import rope_frequencies
from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.convert.gguf_tokenizer import tokenizer_config, tokenizer_json
from dba_core.convert.llama_names import from_gguf
from dba_core.convert.rope_scaling import per_head, scaled_frequencies
from dba_core.convert.source import SourceModel
from dba_core.errors import CheckpointError, UnsupportedError, unknown

ARCHITECTURES = ("llama",)


def load_gguf(path: Path) -> SourceModel:
    """The model in one file. Raises CheckpointError for a file that is cut off or no GGUF, UnsupportedError
    for another architecture and where the package `gguf` is not installed.
    """
    reader = _reader(path)
    fields = _Fields({name: field.contents for name, field in reader.fields.items()}, path)
    family = fields.text("general.architecture")
    if family not in ARCHITECTURES:
        raise UnsupportedError(f"{path}: {unknown('GGUF architecture', family, ARCHITECTURES)}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config, frequencies = _config(fields, tensors)
    heads = {"attn.q_geo.weight": config.attention.n_heads, "attn.k_geo.weight": config.attention.n_kv_heads}
    weights: dict[str, Callable[[], Tensor]] = {}
    for name, tensor in tensors.items():
        ours = from_gguf(name)
        if ours is not None:
            permuted = next((n for part, n in heads.items() if ours.endswith(part)), None)
            weights[ours] = functools.partial(_read, tensor, permuted)
    return SourceModel(
        name=path.stem,
        family=family,
        path=path,
        config=config,
        weights=weights,
        frequencies=frequencies,
        tokenizer_json=tokenizer_json(fields.all()),
        tokenizer_config=tokenizer_config(fields.all()),
    )


def _reader(path: Path) -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedError(
            f"{path} is a GGUF file, and the package 'gguf' that reads it is not installed. Install it: "
            "python -m pip install 'dba[gguf]'"
        )
    gguf = importlib.import_module("gguf")
    try:
        return gguf.GGUFReader(str(path))
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as GGUF ({error}); it is cut off or no GGUF file. Download it again"
        ) from error


class _Fields:
    """The metadata of the file by name."""

    def __init__(self, readers: Mapping[str, Callable[[], Any]], path: Path) -> None:
        self._readers = readers
        self._path = path

    def all(self) -> dict[str, Any]:
        return {name: read() for name, read in self._readers.items()}

    def optional(self, name: str) -> Any:
        return self._readers[name]() if name in self._readers else None

    def text(self, name: str) -> str:
        return str(self._required(name))

    def whole(self, name: str) -> int:
        return int(self._required(name))

    def number(self, name: str) -> float:
        return float(self._required(name))

    def _required(self, name: str) -> Any:
        if name not in self._readers:
            raise CheckpointError(f"{self._path} has no field {name!r}; it is no complete Llama model")
        return self._readers[name]()


def _config(fields: _Fields, tensors: Mapping[str, Any]) -> tuple[ModelConfig, Tensor | None]:
    n_heads = fields.whole("llama.attention.head_count")
    kv_heads = int(fields.optional("llama.attention.head_count_kv") or n_heads)
    width = fields.whole("llama.embedding_length")
    head_dim = int(fields.optional("llama.attention.key_length") or width // n_heads)
    rotated = int(fields.optional("llama.rope.dimension_count") or head_dim)
    if rotated != head_dim:
        raise UnsupportedError(
            f"only {rotated} of the {head_dim} channels of a head are rotated; supported: all of them"
        )
    theta = float(fields.optional("llama.rope.freq_base") or 10000.0)
    frequencies = per_head(_frequencies(fields, tensors, head_dim, theta), kv_heads)
    attention = AttentionConfig(
        mode="standard" if kv_heads == n_heads else "gqa",
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        geo_head_dim=head_dim,
        v_head_dim=int(fields.optional("llama.attention.value_length") or head_dim),
        rope_theta=theta,
        rope_table=frequencies is not None,
    )
    embedding = tensors.get("token_embd.weight")
    vocab = fields.optional("llama.vocab_size") or (
        int(embedding.shape[1]) if embedding is not None else None
    )
    model = ModelConfig(
        vocab_size=vocab,
        context=fields.whole("llama.context_length"),
        n_layers=fields.whole("llama.block_count"),
        d_model=width,
        d_ff=fields.whole("llama.feed_forward_length"),
        norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in tensors,
        attention=attention,
    )
    return model.resolved(), frequencies


def _frequencies(fields: _Fields, tensors: Mapping[str, Any], head_dim: int, theta: float) -> Tensor | None:
    """The factors that the file holds, or the scaling that it names."""
    if "rope_freqs.weight" in tensors:
        factors = torch.tensor(tensors["rope_freqs.weight"].data, dtype=torch.float64).flatten()
        return rope_frequencies(head_dim, theta) / factors
    kind = fields.optional("llama.rope.scaling.type")
    if kind in (None, "none"):
        return None
    factor = fields.optional("llama.rope.scaling.factor")
    return scaled_frequencies(head_dim, theta, {"rope_type": kind, "factor": factor})


def _read(tensor: Any, permuted_heads: int | None) -> Tensor:
    """float32; rows of q and k in half-split order. GGUF lists the axes fastest first."""
    quants = importlib.import_module("gguf.quants")
    array = quants.dequantize(tensor.data, tensor.tensor_type)
    values = torch.from_numpy(array if array.flags.writeable else array.copy()).float()
    values = values.reshape(*(int(size) for size in reversed(tensor.shape)))
    return values if permuted_heads is None else half_split_rows(values, permuted_heads)


def half_split_rows(weight: Tensor, n_heads: int) -> Tensor:
    """[H*D, d_model] with the rows of a pair beside each other -> the rows of a head by halves."""
    rows = weight.view(n_heads, -1, 2, weight.shape[-1])  # [H, D/2, 2, d_model]
    return rows.transpose(1, 2).reshape(weight.shape)
