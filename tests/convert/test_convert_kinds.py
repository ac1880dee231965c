"""What a model asks for and is not computed here is refused; other spellings of what is computed are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core.errors import SourceError
from dba_core.model.pretrained import open_pretrained

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("add", "value", "refused"),
    [
        ("add_sliding_window", 64, True),
        ("add_sliding_window", 0, False),
        ("add_attn_logit_softcapping", 20.0, True),
        ("add_attention_scale", 0.5, True),
        ("add_logit_scale", 0.5, True),
        ("add_logit_scale", 1.0, False),
        ("add_causal_attention", False, True),
        ("add_causal_attention", True, False),
        ("add_expert_count", 4, True),
    ],
)
def test_a_gguf_field_that_changes_the_numbers(
    add: str, value: object, refused: bool, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    path, config = tmp_path / "m.gguf", {**CONFIG, "num_hidden_layers": 1}
    write_gguf(path, config, random_weights(config), more=lambda writer: getattr(writer, add)(value))
    if refused:
        with pytest.raises(SourceError, match="which this library does not compute"):
            open_pretrained(path)
    else:
        open_pretrained(path)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "swish"},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 32,
                "attn_factor": 1.0,
                "extrapolation_factor": 1.0,
            }
        },
    ],
)
def test_other_spellings_of_what_is_computed(change: dict[str, object], tmp_path: Path) -> None:
    plain = {**CONFIG, "num_hidden_layers": 1}
    weights, tokens = random_weights(plain), torch.arange(12)[None]
    spelled = {**plain, **change}
    canonical = {**spelled, "hidden_act": "silu"}
    if "rope_scaling" in change:
        named = ("rope_type", "factor", "original_max_position_embeddings")
        canonical["rope_scaling"] = {name: change["rope_scaling"][name] for name in named}
    found = open_pretrained(write_folder(tmp_path / "a", spelled, weights)).build()(tokens)
    expected = open_pretrained(write_folder(tmp_path / "b", canonical, weights)).build()(tokens)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; supported: llama"),
        ({"model_type": None}, "no model_type; supported: llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "of method 'gptq'"),
    ],
)
def test_a_model_of_another_kind_is_wrong_input(change, said: str, tmp_path: Path, capsys) -> None:
    folder = write_folder(tmp_path / "m", {**CONFIG, **change}, random_weights(CONFIG))
    assert main(["convert", str(folder), "--out", str(tmp_path / "out"), "--keep"]) == 3
    assert said in capsys.readouterr().err


def test_foreign_names_are_said_beside_missing_ones(tmp_path: Path) -> None:
    weights = {f"language_model.{name}": tensor for name, tensor in random_weights(CONFIG).items()}
    with pytest.raises(Exception, match=r"language_model\.\S+ is not part of this architecture.* is missing"):
        open_pretrained(write_folder(tmp_path / "m", CONFIG, weights))


def test_a_tokenizer_that_transformers_reads_in_its_own_way_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, random_weights(CONFIG))
    document = {"normalizer": {"type": "Prepend", "prepend": "_"}, "model": {"type": "BPE"}}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert open_pretrained(folder).opened.notes == ()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    (note,) = open_pretrained(folder).opened.notes
    assert "transformers 5 reads a LlamaTokenizerFast in its own way" in note
