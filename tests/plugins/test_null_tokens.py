"""The null tokens: parameters, what they return, and that zero-width paths have none."""

from __future__ import annotations

import pytest
import torch

from dba_core.contracts import AttentionShape, NullTokenRequest
from dba_core.registry import Registry

pytestmark = pytest.mark.torch


def build(name: str, sem_head_dim: int = 2):
    shape = AttentionShape(
        d_model=8, n_heads=4, n_kv_heads=2, sem_head_dim=sem_head_dim, geo_head_dim=6, v_head_dim=3
    )
    return Registry.default().select("null_token", name, NullTokenRequest(shape=shape)).build()


def test_learned_returns_its_parameters_which_start_at_zero() -> None:
    null = build("learned")
    shapes = {"k_sem_null": (2, 2), "k_geo_null": (2, 6), "v_null": (2, 3)}
    assert {name: tuple(p.shape) for name, p in null.named_parameters()} == shapes
    kv = null()
    assert kv.k_sem is null.k_sem_null
    assert kv.k_geo is null.k_geo_null
    assert kv.v is null.v_null
    assert all(p.eq(0).all() for p in null.parameters())


def test_without_semantic_path_there_is_no_semantic_parameter() -> None:
    null = build("learned", sem_head_dim=0)
    assert set(null.state_dict()) == {"k_geo_null", "v_null"}
    assert null().k_sem.shape == (2, 0)


def test_state_round_trip() -> None:
    one, two = build("learned"), build("learned")
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    two.load_state_dict(one.state_dict())
    assert torch.equal(two().v, one().v)


def test_none_builds_nothing() -> None:
    assert build("none") is None
