"""Which of a folder's tensors are the model's: what transformers takes, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import origin_oracle as origin
import pytest
import torch
from llama_oracle import CONFIG, llama_logits, random_weights, write_folder
from safetensors.torch import save_file

from dba_core.attention.rope import rope_frequencies
from dba_core.checkpoint_source import OpenedSource, expected_shapes
from dba_core.errors import CheckpointError, DBAError, UnsupportedError
from dba_core.model.language_model import LanguageModel
from dba_core.model.pretrained import PretrainedModel, model_config, open_pretrained
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.checkpoints.fields import Fields
from dba_plugins.checkpoints.origin.weights import describe

pytestmark = pytest.mark.torch

UNTIED = {**CONFIG, "tie_word_embeddings": False}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def tokens() -> torch.Tensor:
    return torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(5))


def logits_of(source: PretrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return source.build()(tokens())


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def in_shards(folder: Path, parts: Mapping[str, Mapping[str, torch.Tensor]], **index: str) -> Path:
    """Files of tensors, and the index of them; `index`: what it says otherwise, by tensor."""
    folder.mkdir(exist_ok=True)
    for name, part in parts.items():
        save_file(dict(part), folder / name)
    weight_map = {key: name for name, part in parts.items() for key in part} | index
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return folder


def test_expected_shapes_are_those_of_the_model_that_is_built(tmp_path: Path) -> None:
    for change in ({}, {"attn_mode": "standard"}, {"attn_mode": "gqa", "kv_head": 2}, {"tie_qk": True}):
        config = {**origin.CONFIG, "learned_temp": "gqa" in change.values(), **change}
        for gate, null in (("causal", "learned"), ("static", "none"), ("none", "learned")):
            described = attrs.evolve(
                describe(Fields(config, where="a"), names=()),
                gate=gate if config["attn_mode"] == "decoupled" else "none",
                null_token=null,
            )
            opened = OpenedSource(name="a", family="origin", description=described, weights={}, files=())
            plugins = PluginChoices(
                gate=PluginChoice(described.gate), null_token=PluginChoice(described.null_token)
            )
            own = LanguageModel(model_config(opened, where="a"), plugins=plugins).state_dict()
            assert dict(expected_shapes(described)) == {name: tuple(t.shape) for name, t in own.items()}


def folder_of(case: str, folder: Path) -> Path:
    """A folder that transformers reads too."""
    weights, stale = random_weights(UNTIED), random_weights(UNTIED, seed=9)
    half = len(weights) // 2
    parts = {
        "a.safetensors": dict(list(weights.items())[:half]),
        "b.safetensors": dict(list(weights.items())[half:]),
    }
    config = {**CONFIG, "tie_word_embeddings": "tied" in case}
    if case == "tied, head stored twice":
        weights[HEAD] = weights[EMBEDDING].clone()
    if case == "tied, only the head":
        del weights[EMBEDDING]
    if case == "base model, tied":
        weights = {name.removeprefix("model."): t for name, t in weights.items() if name != HEAD}
    write_folder(folder, config, weights)
    if case == "stale shards":
        in_shards(folder, {"a.safetensors": stale})
    if case == "stale index":
        (folder / INDEX).write_text('{"weight_map": {"x": "gone.safetensors"}}', encoding="utf-8")
    if case.startswith("shards"):
        (folder / "model.safetensors").unlink()
        in_shards(folder, parts)
    if case == "shards, index names less":
        index = {name: file for file, part in parts.items() for name in part if name != HEAD}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "case",
    [
        "tied, own head",
        "tied, head stored twice",
        "tied, only the head",
        "base model, tied",
        "stale shards",
        "stale index",
        "shards",
        "shards, index names less",
    ],
)
def test_the_tensors_are_those_that_transformers_takes(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_of(case, tmp_path / "m")
    llama = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = llama(tokens()).logits
    assert off(logits_of(open_pretrained(folder)), expected) < 1e-5


def test_which_files_were_read_is_said(tmp_path: Path) -> None:
    source = open_pretrained(folder_of("stale shards", tmp_path / "a"))
    assert source.opened.files == ("config.json", "model.safetensors")
    assert f"{INDEX}, a.safetensors" in source.opened.notes[0]
    assert open_pretrained(folder_of("shards", tmp_path / "b")).opened.files == (
        "config.json",
        INDEX,
        "a.safetensors",
        "b.safetensors",
    )
    (note,) = open_pretrained(folder_of("tied, own head", tmp_path / "c")).opened.notes
    assert "differs from the embedding" in note


def test_one_file_of_another_name_is_the_model_and_of_two_none_is(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    folder = write_folder(tmp_path / "m", CONFIG, weights)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    expected = llama_logits(CONFIG, weights, tokens(), rope_frequencies(6, 500.0))
    assert off(logits_of(open_pretrained(folder)), expected) < 1e-5
    save_file(random_weights(CONFIG, seed=1), folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"has other\.safetensors, weights\.safetensors and no model"):
        open_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "sub/x.safetensors", "a.bin", 7],
)
def test_an_index_names_files_of_its_folder_alone(name: Any, tmp_path: Path) -> None:
    save_file(random_weights(CONFIG), tmp_path / "secret.safetensors")
    folder = write_folder(tmp_path / "m", CONFIG, random_weights(CONFIG))
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"allowed: the name of a .* file in the same folder"):
        open_pretrained(folder)


def test_an_index_that_is_not_true(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    folder = write_folder(tmp_path / "m", CONFIG, weights)
    (folder / "model.safetensors").unlink()
    in_shards(folder, {"a.safetensors": weights}, **{"model.extra": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"model\.extra is not in a\.safetensors"):
        open_pretrained(folder)
    in_shards(folder, {"a.safetensors": weights, "b.safetensors": {EMBEDDING: weights[EMBEDDING] + 1}})
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is both in a\.safetensors and in b"):
        open_pretrained(folder)
    for text in ("{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000):
        (folder / INDEX).write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"index\.json"):
            open_pretrained(folder)


def test_one_weight_under_two_names(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["norm.weight"] = weights["model.norm.weight"] * 2
    with pytest.raises(CheckpointError, match=r"holds both .*norm\.weight, which are the same weight"):
        open_pretrained(write_folder(tmp_path / "m", CONFIG, weights))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "int64", "bool"])
def test_weights_are_floating_point_numbers(dtype: str, tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["model.norm.weight"] = torch.ones(24).to(getattr(torch, dtype))
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight is stored as .*; supported: F64, F32"):
        open_pretrained(write_folder(tmp_path / "m", CONFIG, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(CONFIG).items()}
    expected = llama_logits(CONFIG, weights, tokens(), rope_frequencies(6, 500.0))
    assert off(logits_of(open_pretrained(write_folder(tmp_path / "m", CONFIG, weights))), expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 1 << 40}, "do not belong together"),
        ({"vocab_size": 1 << 40}, "do not belong together"),
        ({"num_hidden_layers": 10**6}, "describes 1000000 layers and holds 20 weights"),
        ({"head_dim": 1 << 40}, "do not belong together"),
        ({"vocab_size": 10**4000}, "vocab_size is a whole number of 13288 bits"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size=24 is not a multiple"),
        ({"num_key_value_heads": 3}, "describes no model: .*n_kv_heads"),
        ({"head_dim": 7}, "describes no model: .*odd"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; allowed: true or false"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"model_type": "mistral", "num_key_value_heads": 2}, "sliding_window=4096"),
        ({"layer_types": ["sliding_attention"]}, "layer_types="),
    ],
)
def test_a_configuration_is_measured_before_it_is_believed(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "m", {**CONFIG, **change}, random_weights(CONFIG))
    with pytest.raises(DBAError, match=message):
        open_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["", "nul", "[]", '{"hidden_size": NaN}', "[" * 100_000, '{"a": 1, "a": 2}', "\udcff"]
)
def test_a_configuration_that_is_none(text: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, random_weights(CONFIG))
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_pretrained(folder)
