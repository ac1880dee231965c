"""Checkpoints of the origin system give that system's own logits, whatever their age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import origin_oracle as origin
import pytest
import torch

from dba_core.errors import CheckpointError, UnsupportedError
from dba_core.model.pretrained import open_pretrained
from dba_plugins.convert.calibration import calibrate
from dba_plugins.convert.decouple import Recipe, decouple, select_pairs

pytestmark = pytest.mark.torch

VARIANTS: dict[str, dict[str, Any]] = {
    "decoupled": {},
    "older: static gate": {"decoupled_gate_dynamic": False},
    "no gate, no null": {"decoupled_gate": False, "null_attn": False},
    "gelu, wide embedding": {"mlp": "gelu", "embed_dim": 24},
    "tied": {"tie_qk": True, "learned_temp": False},
    "no rotation": {"rope": False},
    "standard": {"attn_mode": "standard"},
    "baseline, no null": {"attn_mode": "baseline", "null_attn": False},
    "bottleneck": {"attn_mode": "bottleneck", "attn_dim": 16},
    "gqa": {"attn_mode": "gqa", "kv_head": 2},
    "gqa, as many heads, not rotated": {"attn_mode": "gqa", "kv_head": 4, "rope": False},
}


def tokens() -> torch.Tensor:
    return torch.randint(61, (2, 19), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_logits_are_the_origins_own(name: str, tmp_path: Path) -> None:
    config = {**origin.CONFIG, **VARIANTS[name]}
    state = origin.random_state(config)
    source = open_pretrained(origin.write(tmp_path / "old.pt", config, state))
    expected = origin.logits(config, state, tokens())
    found = source.build()(tokens())
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    assert (source.opened.name, source.opened.family) == ("old", "origin")


def test_fields_that_older_files_lack_take_that_systems_defaults(tmp_path: Path) -> None:
    config = dict(origin.CONFIG)
    state = origin.random_state(config, long_sequence=False)
    for name in ("device", "train_long_seq_enabled", "train_long_seq_mem_summarizer", "rope", "dropout"):
        del config[name]
    source = open_pretrained(origin.write(tmp_path / "old.pt", config, state))
    expected = origin.logits(origin.CONFIG, state, tokens())
    assert (source.build()(tokens()) - expected).abs().max() / expected.abs().max() < 1e-5
    assert source.opened.notes == ()


@pytest.mark.parametrize("tied", [False, True])
def test_an_origin_model_that_is_not_rotated_is_decoupled_without_loss(tied: bool, tmp_path: Path) -> None:
    """Its learned temperature and its tied projections become part of the weights."""
    change = {"attn_mode": "standard", "null_attn": False, "rope": False, "tie_qk": tied}
    config = {**origin.CONFIG, **change}
    state = origin.random_state(config)
    model = open_pretrained(origin.write(tmp_path / "old.pt", config, state)).build().requires_grad_(False)
    measured = calibrate(model, tokens())
    pairs = select_pairs(measured, model.attentions[0].rope.frequencies, pairs=2, rule="kl", fit=False)
    made = decouple(model, measured, pairs, Recipe(pairs=2, fit=False))
    expected = origin.logits(config, state, tokens())
    assert float(state["blocks.0.attn.logit_scale"].abs().max()) > 0.1
    assert (made(tokens()) - expected).abs().max() / expected.abs().max() < 1e-4
    assert float(measured.layers[0].damage.max()) < 1e-6


def test_what_stays_out_is_named(tmp_path: Path) -> None:
    state = origin.random_state(origin.CONFIG)
    (note,) = open_pretrained(origin.write(tmp_path / "old.pt", origin.CONFIG, state)).opened.notes
    assert "long_seq_mem_k_alpha, long_seq_mem_k_linear.weight" in note


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attn_mode": "sparse"}, UnsupportedError, "sparse"),
        ({"diffusion_head": True}, UnsupportedError, "diffusion head"),
        ({"n_layer": None}, CheckpointError, "has no 'n_layer'"),
        ({"d_model": "wide"}, CheckpointError, "'config': d_model is 'wide'"),
        ({"sem_dim": 13}, CheckpointError, "sem_dim=13 does not divide into n_head=4 heads"),
        ({"geo_dim": 12}, CheckpointError, "describes no model.*odd"),
    ],
)
def test_a_configuration_that_cannot_be_used(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    state = origin.random_state(origin.CONFIG)
    with pytest.raises(error, match=message):
        open_pretrained(origin.write(tmp_path / "old.pt", {**origin.CONFIG, **change}, state))


def test_weights_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    state = origin.random_state(origin.CONFIG)
    del state["blocks.1.attn.q_geo.weight"]
    state["blocks.0.ff.fc2.weight"] = torch.ones(3)
    path = origin.write(tmp_path / "old.pt", origin.CONFIG, state)
    with pytest.raises(CheckpointError, match=r"fc2\.weight.*blocks\.1\.attn\.q_geo\.weight is missing"):
        open_pretrained(path)


class Surprise:
    """What unpickling must never call."""


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = origin.write(tmp_path / "a.pt", origin.CONFIG, origin.random_state(origin.CONFIG))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_pretrained(path)
    torch.save({"config": origin.CONFIG, "model": {}, "extra": Surprise()}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="not unpickled"):
        open_pretrained(tmp_path / "b.pt")
    torch.save({"weights": {}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="holds weights, and a checkpoint of the origin system"):
        open_pretrained(tmp_path / "c.pt")
    torch.save([1], tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="holds list"):
        open_pretrained(tmp_path / "d.pt")
    torch.save({"config": origin.CONFIG, "model": {"tok_emb.weight": 3}}, tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match=r"'tok_emb\.weight' in 'model' is no tensor"):
        open_pretrained(tmp_path / "e.pt")
