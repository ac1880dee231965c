"""How a source's rotation is scaled: the logits of transformers itself, in every spelling, or an error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from llama_oracle import CONFIG, llama_logits, random_weights, write_folder

from dba_core.attention.rope import rope_frequencies
from dba_core.errors import CheckpointError, UnsupportedError
from dba_core.model.pretrained import open_pretrained

pytestmark = pytest.mark.torch

WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 64}
CLOSE = 1e-4  # transformers takes cos and sin of angles in float32
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SPELLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear, both names": {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}},
    "linear, new": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3, length of the whole configuration": {
        "rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_scaling": YARN},
    "yarn, new": {"rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 900.0}},
    "yarn, no length": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, factor from the lengths": {"rope_scaling": {**YARN, "factor": None}},
    "yarn, attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.4}},
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.8, "mscale_all_dim": 2.0}},
    "yarn, one mscale": {"rope_scaling": {**YARN, "mscale": 0.8}},
    "yarn, betas": {"rope_scaling": {**YARN, "beta_fast": 2, "beta_slow": 0.3}},
    "yarn, not truncated": {"rope_scaling": {**YARN, "beta_fast": 2, "beta_slow": 0.3, "truncate": False}},
    "yarn, shrunk": {"rope_scaling": {**YARN, "factor": 0.5}},
    "yarn, same everywhere": {"rope_parameters": {"full_attention": YARN}},
}


def tokens() -> torch.Tensor:
    return torch.randint(256, (2, 60), generator=torch.Generator().manual_seed(5))


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {**WIDE, **SPELLINGS[name]}
    folder = write_folder(tmp_path / "m", config, random_weights(WIDE))
    if name == "yarn, same everywhere":  # which transformers does not read for a Llama
        config = {**WIDE, "rope_scaling": YARN}
    theirs = write_folder(tmp_path / "theirs", config, random_weights(WIDE))
    llama = transformers.LlamaForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    with torch.no_grad():
        expected = llama(tokens()).logits
        model = open_pretrained(folder).build()
        assert off(model(tokens()), expected) < CLOSE
    if name != "plain":
        other = open_pretrained(write_folder(tmp_path / "plain", WIDE, random_weights(WIDE))).build()
        assert off(other(tokens()), expected) > 1e-3, "the scaling matters here"


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su"])
def test_what_depends_on_the_length_is_refused_for_that_reason(kind: str, tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"type": kind, "factor": 2.0}}
    folder = write_folder(tmp_path / "m", {**WIDE, **scaling}, random_weights(WIDE))
    reason = "length of the text" if kind == "dynamic" else "from one table of frequencies to another"
    with pytest.raises(UnsupportedError, match=f"'{kind}' is not supported: .*{reason}"):
        open_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}},
            CheckpointError,
            "rope_scaling says .*linear.* and rope_parameters says .*default",
        ),
        (
            {"rope_parameters": {**YARN, "factor": 2.0}, "rope_scaling": YARN},
            CheckpointError,
            "rope_scaling says .*4.0.* and rope_parameters says .*2.0",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            CheckpointError,
            "rope_type is 'yarn' and type is 'linear'",
        ),
        ({"rope_parameters": {"rope_theta": 9.0}}, CheckpointError, "rope_theta is 500 and 9"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 99},
            CheckpointError,
            "99 in .* and 16 in .*rope_scaling",
        ),
        ({"rope_scaling": {"factor": 4.0}}, CheckpointError, "'factor': 4.0.*'default' does not read"),
        ({"rope_scaling": {**YARN, "attn_factor": 2.0}}, CheckpointError, "attn_factor.*would be lost"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "rope_scaling has no 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, CheckpointError, "factor is 0; allowed"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, CheckpointError, "factor is '4'; allowed"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, CheckpointError, "factor is True; allowed"),
        ({"rope_scaling": {**YARN, "beta_fast": 1}}, CheckpointError, "beta_slow=1 is not below beta_fast=1"),
        ({"rope_scaling": {**YARN, "attention_factor": -1.0}}, CheckpointError, "attention_factor is -1.0"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, CheckpointError, "low_freq_factor=1 is not"),
        ({"rope_scaling": 4.0}, CheckpointError, "rope_scaling is 4.0; allowed: an object"),
        ({"rope_scaling": {"type": ["linear"]}}, CheckpointError, r"type is \['linear'\]; allowed: a text"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, UnsupportedError, "unknown RoPE scaling 'ntk'"),
        ({"rope_theta": None}, CheckpointError, "rope_theta is None; allowed: a finite number above 0"),
        ({"rope_theta": "1e4"}, CheckpointError, "rope_theta is '1e4'"),
        ({"rope_theta": -1.0}, CheckpointError, "rope_theta is -1.0"),
        ({"rope_theta": 1.0, "rope_scaling": YARN}, CheckpointError, "rope_theta=1 is not above 1"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedError, "partial_rotary_factor=0.5"),
        (
            {"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}},
            UnsupportedError,
            "rotated differently",
        ),
    ],
)
def test_scaling_that_cannot_be_followed_is_an_error(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "m", {**WIDE, **change}, random_weights(WIDE))
    with pytest.raises(error, match=message):
        open_pretrained(folder)


ARCH = "llama.rope."
OF_GGUF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "factor without a type": ({"scaling.factor": 4.0}, SPELLINGS["linear"]),
    "the older name": ({"scale_linear": 4.0}, SPELLINGS["linear"]),
    "both names": ({"scale_linear": 4.0, "scaling.factor": 4.0}, SPELLINGS["linear"]),
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, SPELLINGS["linear"]),
    "none": ({"scaling.type": "none"}, {}),
    "a factor of 0": ({"scaling.factor": 0.0}, {}),
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16},
        SPELLINGS["yarn"],
    ),
    "yarn, everything": (
        {
            "scaling.type": "yarn",
            "scaling.factor": 4.0,
            "scaling.original_context_length": 16,
            "scaling.attn_factor": 1.5,
            "scaling.yarn_beta_fast": 2.0,
            "scaling.yarn_beta_slow": 0.25,
            "scaling.yarn_ext_factor": 1.0,
        },
        {
            "rope_scaling": {
                **YARN,
                "beta_fast": 2.0,
                "beta_slow": 0.25,
                "attention_factor": 1.5 * (0.1 * math.log(4.0) + 1.0),
            }
        },
    ),
}


def gguf_with(path: Path, said: dict[str, Any], divisors: list[float] | None = None) -> Path:
    """The model of `random_weights(WIDE)` with fields below `llama.rope.`."""
    pytest.importorskip("gguf")

    def more(writer: Any) -> None:
        for name, value in said.items():
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](
                ARCH + name, value
            )
        if divisors is not None:
            writer.add_tensor("rope_freqs.weight", torch.tensor(divisors).numpy())

    return write_gguf(path, WIDE, random_weights(WIDE), more=more)


@pytest.mark.parametrize("name", OF_GGUF)
def test_a_gguf_file_says_it_in_its_own_words(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said, theirs = OF_GGUF[name]
    folder = write_folder(tmp_path / "m", {**WIDE, **theirs}, random_weights(WIDE))
    llama = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = open_pretrained(gguf_with(tmp_path / "m.gguf", said)).build()(tokens())
        assert off(found, llama(tokens()).logits) < CLOSE


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_factors_that_a_gguf_file_holds_as_a_tensor(factor: float, tmp_path: Path) -> None:
    divisors = [1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 8.0]
    path = gguf_with(tmp_path / "m.gguf", {"scaling.factor": factor}, divisors)
    frequencies = rope_frequencies(16, 500.0) / torch.tensor(divisors) / factor
    expected = llama_logits(WIDE, random_weights(WIDE), tokens(), frequencies)
    with torch.no_grad():
        assert off(open_pretrained(path).build()(tokens()), expected) < CLOSE


@pytest.mark.parametrize(
    ("said", "divisors", "error", "message"),
    [
        (
            {"scale_linear": 2.0, "scaling.factor": 4.0},
            None,
            CheckpointError,
            "factor is 4 and .*scale_linear is 2",
        ),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None, CheckpointError, "factor is 4 and .*'none'"),
        ({"scaling.type": "yarn"}, None, CheckpointError, "has no 'llama.rope.scaling.factor'"),
        ({"scaling.factor": 4.0, "scaling.yarn_beta_fast": 8.0}, None, CheckpointError, "not 'yarn'"),
        ({"scaling.type": "longrope"}, None, UnsupportedError, "one table of frequencies"),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_attn_factor": 1.0},
            None,
            UnsupportedError,
            "which is meant",
        ),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_log_multiplier": 0.5},
            None,
            UnsupportedError,
            "yarn_log_multiplier",
        ),
        ({"scaling.alpha": 2.0}, None, UnsupportedError, "scaling.alpha.*not known"),
        ({"freq_scale": 2.0}, None, UnsupportedError, "freq_scale.*not known"),
        ({"dimension_count": 8}, None, UnsupportedError, "only 8 of the 16 channels"),
        ({"scaling.factor": "4"}, None, CheckpointError, "factor is '4'"),
        ({}, [1.0] * 7, CheckpointError, "rope_freqs.weight is of shape"),
        ({}, [1.0] * 7 + [0.0], CheckpointError, "not above 0"),
        ({}, [1.0] * 7 + [math.nan], CheckpointError, "rope_freqs.weight holds 1 of 8 values"),
    ],
)
def test_a_gguf_file_that_contradicts_itself_or_says_too_much(
    said: dict[str, Any],
    divisors: list[float] | None,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    path = gguf_with(tmp_path / "m.gguf", said, divisors)
    with pytest.raises(error, match=message):
        open_pretrained(path)
