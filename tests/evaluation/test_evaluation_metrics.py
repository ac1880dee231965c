"""Fidelity metrics against numpy in float64: totals, curves, merging, and cases whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dba_core.errors import DataError
from dba_core.evaluation import metrics
from dba_core.evaluation.metrics import FidelityAccumulator, exp_or_inf, fidelity_metrics

pytestmark = pytest.mark.torch


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(batch: int = 3, length: int = 5, vocab: int = 7, *, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(batch, length, vocab)).astype(np.float32) * 3
    logits = (reference + rng.normal(size=reference.shape) * 0.3).astype(np.float32)
    return reference, logits, rng.integers(0, vocab, (batch, length))


def tensors(given: Arrays) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in given)


def oracle(given: Arrays) -> dict[str, np.ndarray]:
    """Per position and sequence [B, T]; the definitions written out in float64."""
    reference, logits, targets = (array.astype(np.float64) for array in given)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (reference, logits))
    index = targets.astype(int)[..., None]
    return {
        "nll": -np.log(np.take_along_axis(q, index, -1))[..., 0],
        "reference_nll": -np.log(np.take_along_axis(p, index, -1))[..., 0],
        "kl": (p * np.log(p / q)).sum(-1),
        "max_abs_logit": np.abs(logits - reference).max(-1),
    }


def expect(found: metrics.FidelityMetrics, per_token: dict[str, np.ndarray]) -> None:
    delta = per_token["nll"].mean() - per_token["reference_nll"].mean()
    assert found.delta_nll == pytest.approx(delta, rel=1e-12, abs=1e-14)
    assert found.ppl_ratio == pytest.approx(math.exp(delta), rel=1e-12)
    assert found.kl == pytest.approx(per_token["kl"].mean(), rel=1e-12)
    assert found.max_abs_logit == per_token["max_abs_logit"].max()
    assert found.tokens == per_token["nll"].size


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 2), (2, 33, 257), (1, 4, 1)])
def test_metrics_equal_numpy(shape: tuple[int, int, int]) -> None:
    given = arrays(*shape)
    expect(fidelity_metrics(*tensors(given)), oracle(given))


def test_one_sequence_needs_no_batch() -> None:
    given = arrays(batch=1)
    assert fidelity_metrics(*(t[0] for t in tensors(given))) == fidelity_metrics(*tensors(given))


def test_a_known_value() -> None:
    reference = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    logits = torch.tensor([[[0.8, 0.2], [0.9, 0.1]]]).log()
    found = fidelity_metrics(reference, logits, torch.tensor([[0, 1]]))
    assert found.delta_nll == pytest.approx((math.log(0.5) - math.log(0.8)) / 2, rel=1e-6)
    assert found.ppl_ratio == pytest.approx(math.sqrt(0.5 / 0.8), rel=1e-6)
    assert found.kl == pytest.approx((0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2, rel=1e-6)
    assert found.max_abs_logit == pytest.approx(math.log(0.5 / 0.2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_give_exactly_zero(dtype: torch.dtype) -> None:
    reference, _, targets = tensors(arrays(4, 9, 65))
    reference = reference.to(dtype) * 30
    found = fidelity_metrics(reference, reference.clone(), targets)
    assert (found.delta_nll, found.kl, found.max_abs_logit, found.ppl_ratio) == (0.0, 0.0, 0.0, 1.0)


def test_equal_shifts_change_the_logits_and_no_probability() -> None:
    reference, _, targets = tensors(arrays())
    found = fidelity_metrics(reference.double(), reference.double() + 2, targets)
    assert found.max_abs_logit == pytest.approx(2)
    assert abs(found.delta_nll) < 1e-14
    assert abs(found.kl) < 1e-14


def test_updates_and_merges_equal_the_whole() -> None:
    given = arrays(6, 8)
    whole, left, right = FidelityAccumulator(), FidelityAccumulator(), FidelityAccumulator()
    whole.update(*tensors(given))
    for t in range(8):  # as the decode path does, one position at a time
        left.update(*(x[:2, t : t + 1] for x in tensors(given)), positions=torch.tensor([t]))
    right.update(*(x[2:, :3] for x in tensors(given)))
    right.update(*(x[2:, 3:] for x in tensors(given)), positions=torch.arange(3, 8))
    left.merge(right)
    expect(left.result(), oracle(given))
    for name in ("nll", "reference_nll", "kl", "max_abs_logit", "tokens"):
        np.testing.assert_allclose(left.curves()[name], whole.curves()[name], rtol=1e-12)


def test_merging_the_shorter_into_the_longer_and_back() -> None:
    short, long = arrays(1, 3, seed=1), arrays(1, 6, seed=2)
    for first, second in ((short, long), (long, short)):
        a, b = FidelityAccumulator(), FidelityAccumulator()
        a.update(*tensors(first))
        b.update(*tensors(second))
        a.merge(b)
        joined = {key: np.concatenate([oracle(short)[key][0], oracle(long)[key][0]]) for key in oracle(short)}
        expect(a.result(), joined)
        assert a.curves()["tokens"].tolist() == [2, 2, 2, 1, 1, 1]


def test_curves_equal_numpy_per_position() -> None:
    given = arrays(4, 6)
    accumulator = FidelityAccumulator()
    accumulator.update(*tensors(given))
    curves, per_token = accumulator.curves(), oracle(given)
    for name in ("nll", "reference_nll", "kl"):
        np.testing.assert_allclose(curves[name], per_token[name].mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        curves["delta_nll"],
        per_token["nll"].mean(0) - per_token["reference_nll"].mean(0),
        rtol=1e-9,
        atol=1e-14,
    )
    assert curves["max_abs_logit"].tolist() == per_token["max_abs_logit"].max(0).tolist()
    assert curves["tokens"].tolist() == [4] * 6


def test_result_over_a_part_of_the_positions() -> None:
    given = arrays(4, 6)
    accumulator = FidelityAccumulator()
    accumulator.update(*tensors(given))
    expect(accumulator.result(start=2), {key: value[:, 2:] for key, value in oracle(given).items()})
    expect(accumulator.result(start=1, stop=3), {key: value[:, 1:3] for key, value in oracle(given).items()})


def test_positions_place_the_columns() -> None:
    given = arrays(2, 3)
    accumulator = FidelityAccumulator()
    accumulator.update(*tensors(given), positions=torch.tensor([5, 1, 5]))
    kl = oracle(given)["kl"]
    curves = accumulator.curves()
    assert curves["tokens"].tolist() == [0, 2, 0, 0, 0, 4]
    assert curves["kl"][1] == pytest.approx(kl[:, 1].mean())
    assert curves["kl"][5] == pytest.approx(kl[:, [0, 2]].mean())
    assert np.isnan(curves["kl"][[0, 2, 3, 4]]).all()
    expect(accumulator.result(), oracle(given))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arrays(2, 9)
    monkeypatch.setattr(metrics, "_CHUNK", 2 * 7 * 4)
    expect(fidelity_metrics(*tensors(given)), oracle(given))


def test_tokens_that_are_ruled_out() -> None:
    inf = math.inf
    both = torch.tensor([[[0.0, 0.0, -inf]]])
    found = fidelity_metrics(both, both.clone(), torch.tensor([[2]]))
    assert (found.kl, found.delta_nll, found.max_abs_logit) == (0.0, 0.0, 0.0)
    only_new = fidelity_metrics(torch.zeros(1, 1, 3), both, torch.tensor([[0]]))
    assert (only_new.kl, only_new.max_abs_logit) == (inf, inf)
    assert only_new.delta_nll == pytest.approx(math.log(2 / 3))
    only_reference = fidelity_metrics(both, torch.zeros(1, 1, 3), torch.tensor([[0]]))
    assert only_reference.kl == pytest.approx(math.log(3 / 2))


def test_nan_is_not_hidden() -> None:
    reference, logits, targets = tensors(arrays())
    logits[1, 2, 3] = math.nan
    found = fidelity_metrics(reference, logits, targets)
    assert all(math.isnan(x) for x in (found.delta_nll, found.kl, found.max_abs_logit, found.ppl_ratio))


def test_wrong_shapes_and_nothing_compared() -> None:
    reference, logits, targets = tensors(arrays())
    with pytest.raises(ValueError, match=r"targets \(3, 4\); expected \[B, T, V\], \[B, T, V\], \[B, T\]"):
        fidelity_metrics(reference, logits, targets[:, 1:])
    with pytest.raises(ValueError, match=r"logits \(3, 5, 6\)"):
        fidelity_metrics(reference, logits[..., 1:], targets)
    with pytest.raises(ValueError, match=r"positions \(4,\); expected \[5\]"):
        FidelityAccumulator().update(reference, logits, targets, positions=torch.arange(4))
    with pytest.raises(DataError, match="no tokens were compared at positions 0 to None"):
        FidelityAccumulator().result()


def test_exp_or_inf() -> None:
    assert exp_or_inf(1.0) == math.e
    assert exp_or_inf(1000.0) == math.inf
    assert exp_or_inf(-1000.0) == 0.0
    assert math.isnan(exp_or_inf(math.nan))
