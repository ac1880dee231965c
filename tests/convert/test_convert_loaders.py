"""Loaders give the source's own logits, and say what is wrong with a file that they cannot load."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from llama_oracle import CONFIG, llama_logits, random_weights, write_folder
from safetensors.torch import save_file

from dba_core.attention.rope import rope_frequencies
from dba_core.errors import CheckpointError, SourceError, UnsupportedError
from dba_core.model.pretrained import open_pretrained

pytestmark = pytest.mark.torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "tied": {},
    "own head": {"tie_word_embeddings": False},
    "as many kv heads": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 10},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "parameters": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
}


def tokens() -> torch.Tensor:
    return torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_logits_are_the_models_own(name: str, tmp_path: Path) -> None:
    config = {**CONFIG, **VARIANTS[name]}
    weights = random_weights(config)
    source = open_pretrained(write_folder(tmp_path / "model", config, weights))
    head = config.get("head_dim", 6)
    theta = 77.0 if name == "parameters" else 500.0
    frequencies = rope_frequencies(head, theta)
    if name == "linear":
        frequencies = frequencies / 4
    if name == "llama3":
        frequencies = torch.tensor([llama3(float(f)) for f in frequencies], dtype=torch.float64)
    expected = llama_logits(config, weights, tokens(), frequencies)
    logits = source.build()(tokens())
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-5
    assert source.opened.name == "model"


def llama3(frequency: float) -> float:
    """The published rule, one pair at a time."""
    wavelength = 2 * math.pi / frequency
    if wavelength < 32 / 4.0:
        return frequency
    if wavelength > 32 / 1.0:
        return frequency / 8
    smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
    return (1 - smooth) * frequency / 8 + smooth * frequency


def test_a_model_in_several_files(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    names = sorted(weights)
    folder = write_folder(tmp_path / "m", CONFIG, weights)
    (folder / "model.safetensors").unlink()
    files = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    expected = llama_logits(CONFIG, weights, tokens(), rope_frequencies(6, 500.0))
    assert (open_pretrained(folder).build()(tokens()) - expected).abs().max() < 1e-3
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        open_pretrained(folder)


def test_a_gguf_file_has_its_rows_put_back(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = {**CONFIG, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    weights = random_weights(config)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config, weights)
    source = open_pretrained(path)
    expected = llama_logits(config, weights, tokens(), rope_frequencies(8, 500.0))
    logits = source.build()(tokens())
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-5
    assert source.opened.tokenizer_json is None, "no tokenizer in the file"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        open_pretrained(path)


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        ({"model_type": "gpt2"}, SourceError, "model_type 'gpt2'; supported: llama, mistral"),
        ({"model_type": None}, SourceError, "config.json: got no model_type; supported: llama"),
        ({"attention_bias": True}, UnsupportedError, "attention_bias=True"),
        ({"sliding_window": 4096}, UnsupportedError, "sliding_window=4096"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantization_config"),
        ({"attention_bias": 1}, CheckpointError, "attention_bias is 1; allowed: true or false"),
        ({"hidden_size": "24"}, CheckpointError, "hidden_size is '24'"),
        ({"num_hidden_layers": 3}, CheckpointError, r"blocks\.2\..* is missing"),
        ({"num_hidden_layers": 1}, CheckpointError, r"blocks\.1\..* is not part of this architecture"),
        ({"intermediate_size": 41}, CheckpointError, "do not belong together"),
        ({"tie_word_embeddings": False}, CheckpointError, r"lm_head\.weight is missing"),
    ],
)
def test_what_does_not_fit_is_said(change, error, hint: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {**CONFIG, **change}, random_weights(CONFIG))
    with pytest.raises(error, match=hint):
        open_pretrained(folder).build()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file or folder .*; give the folder"):
        open_pretrained(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"is no model .*\n.*huggingface, path: got .* no config\.json"):
        open_pretrained(tmp_path / "empty")
    folder = write_folder(tmp_path / "m", CONFIG, random_weights(CONFIG))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut off or no safetensors file"):
        open_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors file"):
        open_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which are pickles"):
        open_pretrained(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        open_pretrained(folder)
