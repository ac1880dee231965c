"""The figures show what the library does: their cells are those of its masks, their state is a softmax."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.needs("numpy", "mkdocs")

GEN = Path(__file__).resolve().parents[2] / "docs" / "gen"


@pytest.fixture(scope="module")
def figures() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("figures", GEN / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
def test_masks_are_those_of_torch(figures: types.ModuleType) -> None:
    bias = pytest.importorskip("torch.nn.attention.bias")
    top_left, bottom_right = figures.masks(3, 7)
    assert np.array_equal(top_left, bias.causal_upper_left(3, 7)._materialize().numpy())
    assert np.array_equal(bottom_right, bias.causal_lower_right(3, 7)._materialize().numpy())


def test_every_earlier_token_is_read_in_one_way_and_no_later_one(figures: types.ModuleType) -> None:
    cells = figures.long_sequence_cells(24, block=4, window=4, chunk=4)
    assert np.array_equal(cells > 0, np.tri(24, dtype=bool))
    assert (cells[23, :16] == 1).all()
    assert (cells[23, 16:] == 2).all()


def test_the_last_state_is_the_softmax_of_all_scores(figures: types.ModuleType) -> None:
    scores = np.random.default_rng(0).normal(0, 3, 23)
    m, total = figures.online_softmax_states(scores, 5)[-1]
    assert m == scores.max()
    np.testing.assert_allclose(total, np.exp(scores - m).sum(), rtol=1e-13)


@pytest.mark.parametrize("name", ["causal-masks", "long-sequence", "cache-bytes", "online-softmax"])
def test_a_figure_is_the_same_bytes_every_time(figures: types.ModuleType, name: str) -> None:
    draw = figures.FIGURES[name]
    first = figures.as_svg(draw)
    assert first.startswith(b"<?xml")
    assert first == figures.as_svg(draw)


def test_every_figure_is_on_a_page(figures: types.ModuleType) -> None:
    text = "".join(page.read_text("utf-8") for page in GEN.parent.rglob("*.md"))
    assert not {name for name in figures.FIGURES if f"assets/figures/{name}.svg" not in text}
