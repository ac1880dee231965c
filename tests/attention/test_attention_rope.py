"""Rotary embedding against complex rotation, its table, and its precision far out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import TOL

from dba_core.attention.rope import RopeTable, rope_frequencies, shared_rope_table
from dba_core.attention.rope import rotated as rotated_by

pytestmark = pytest.mark.torch


def rotated(x: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """x [B,H,T,D] at positions [T] or [B,T], by the table of these frequencies."""
    return rotated_by(x, *RopeTable(frequencies).at(positions, int(positions.max()) + 1, x))


def turned(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """x [T,D] as D/2 complex numbers, real parts first."""
    half = x.shape[-1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * positions[:, None] * frequencies)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_frequencies_are_the_geometric_series() -> None:
    expected = [10000.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(rope_frequencies(8, 10000.0).numpy(), expected, rtol=1e-15)
    with pytest.raises(ValueError, match="head_dim=7 is odd"):
        rope_frequencies(7, 10000.0)


@pytest.mark.parametrize("per_row", [False, True])
def test_rotation_per_kv_head_and_row(per_row: bool) -> None:
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    frequencies = torch.rand(2, 3, dtype=torch.float64)
    positions = torch.tensor([[3, 4, 5, 6, 7], [0, 9, 2, 100, 5]]) if per_row else torch.arange(3, 8)
    out = rotated(x, positions, frequencies)
    for b in range(2):
        at = (positions[b] if per_row else positions).numpy()
        for h in range(4):
            expected = turned(x[b, h].numpy(), at, frequencies[h // 2].numpy())
            np.testing.assert_allclose(out[b, h].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    f = rope_frequencies(16, 10000.0)

    def score(i: int, j: int) -> float:
        return float((rotated(q, torch.tensor([i]), f) * rotated(k, torch.tensor([j]), f)).sum())

    assert score(7, 3) == pytest.approx(score(100_007, 100_003), abs=1e-9)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_float32_is_exact_far_out() -> None:
    """Angles rounded to float32 before the cosine would be off by 0.008 at position 131,071."""
    x = torch.randn(1, 1, 2, 64)
    positions = torch.tensor([131_071, 99_991])
    f = rope_frequencies(64, 10000.0)
    expected = turned(x[0, 0].double().numpy(), positions.numpy().astype(float), f.numpy())
    np.testing.assert_allclose(rotated(x, positions, f)[0, 0].numpy(), expected, atol=1e-6)
    table = RopeTable(f)
    cos, sin = table.at(positions, 131_072, x)
    angle = positions.double()[:, None] * f
    torch.testing.assert_close(cos[:, 0].double(), angle.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin[:, 0].double(), angle.sin(), rtol=0, atol=1e-7)


def test_table_grows_and_keeps_its_values() -> None:
    table, like = RopeTable(rope_frequencies(4, 100.0)), torch.zeros(1)
    short = [t.clone() for t in table.span(2, 5, like)]
    long = table.span(0, 3000, like)
    assert long[0].shape == (3000, 1, 2)
    torch.testing.assert_close(long[0][2:5], short[0], rtol=0, atol=0)
    torch.testing.assert_close(long[1][2:5], short[1], rtol=0, atol=0)
    assert table.span(0, 4, torch.zeros(1, dtype=torch.float64))[0].dtype == torch.float64
    torch.testing.assert_close(
        table.span(0, 4, like)[0].double(), table.span(0, 4, like.double())[0], **TOL["float32"]
    )


def test_layers_share_a_table_and_one_made_while_sampling_serves_training() -> None:
    with torch.inference_mode():
        table = shared_rope_table(10, 123.0)
        table.span(0, 70, torch.zeros(1))
    assert shared_rope_table(10, 123.0) is table
    x = torch.randn(1, 1, 70, 10, requires_grad=True)
    cos, _ = table.span(0, 70, x)
    (x[..., :5] * cos[:, 0]).sum().backward()
    assert torch.isfinite(x.grad).all()
