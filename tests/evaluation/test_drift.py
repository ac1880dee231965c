"""Drift of the long-sequence path against a dense computation, and what must hold for any model."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from drift_oracle import dense_figures, dense_logits

from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import PluginError, UnsupportedError
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.drift.logits import Approximation, keys_per_query, measure_drift, resolved_setting

pytestmark = pytest.mark.torch


VOCAB = 29
TEXT = np.random.default_rng(0).integers(0, VOCAB, 200).astype(np.uint16)
DOCUMENTS = [TEXT[:43], TEXT[100:143]]  # 42 positions each
PATH = LongSequenceConfig(mem_block=4, local_window=6, q_chunk=5)
BY_MEAN = Approximation(PATH, "mean")
FIRST = 10  # whole chunks of 5 until 6 + 4 tokens


def make_model(
    *, sizes: dict[str, int] | None = None, knobs: LongSequenceConfig | None = None, **plugins: str
) -> LanguageModel:
    """Two layers with enlarged weights, so that probabilities are far from uniform; no neutral gate."""
    shape = {"n_heads": 4, "sem_head_dim": 6, "geo_head_dim": 4, "v_head_dim": 8, **(sizes or {})}
    config = ModelConfig(
        vocab_size=VOCAB,
        context=42,
        n_layers=2,
        d_model=32,
        attention=AttentionConfig(**shape),
        train_long_seq=knobs or LongSequenceConfig(enabled=False),
    )
    choices = {kind: PluginChoice(name) for kind, name in plugins.items()}
    model = LanguageModel(config, plugins=PluginChoices(**choices), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name or "null" in name:
                parameter.normal_(0, 0.5, generator=generator)
            elif parameter.dim() == 2:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(null_token="learned").double()


@pytest.mark.parametrize(
    ("changes", "sizes", "null_token"),
    [
        ({}, {}, "none"),
        ({"mass_correction": True}, {}, "learned"),
        ({"mem_block": 3, "q_chunk": 1}, {"n_kv_heads": 2}, "learned"),
        ({"local_window": 0, "q_chunk": 16}, {"n_kv_heads": 1, "v_head_dim": 12}, "none"),
    ],
)
def test_figures_equal_a_dense_computation(changes, sizes, null_token: str) -> None:
    model = make_model(sizes=sizes, null_token=null_token).double()
    path = attrs.evolve(PATH, **changes)
    (drift,) = measure_drift(model, DOCUMENTS, [Approximation(path, "mean")])
    first = drift.plan.exact_stop
    assert 0 < first < 42
    for document, found in zip(DOCUMENTS, drift.documents, strict=True):
        tokens = torch.from_numpy(document.astype(np.int64))[None]
        exact, approximate = (dense_logits(model, tokens[:, :-1], each) for each in (None, path))
        for start, stop in ((0, 42), (first, 42), (first, first + 7)):
            expected = dense_figures(exact, approximate, tokens[:, 1:], start, stop)
            figures = found.result(start=start, stop=stop)
            assert abs(expected.delta_nll) > 1e-5, "the comparison must see something"
            assert figures.delta_nll == pytest.approx(expected.delta_nll, rel=1e-7, abs=1e-11)
            assert figures.ppl_ratio == pytest.approx(np.exp(expected.delta_nll), rel=1e-7)
            assert figures.kl == pytest.approx(expected.kl, rel=1e-7, abs=1e-11)
            assert figures.max_abs_logit == pytest.approx(expected.max_abs_logit, rel=1e-7)
            assert found.curves()["reference_nll"][start:stop].mean() == pytest.approx(
                expected.exact_nll, rel=1e-9
            )


def test_positions_before_the_first_memory_token_do_not_drift(model: LanguageModel) -> None:
    (drift,) = measure_drift(model, DOCUMENTS, [BY_MEAN])
    assert drift.plan.exact_stop == FIRST
    before, after = drift.total.result(stop=FIRST), drift.total.result(start=FIRST)
    assert before.max_abs_logit < 1e-12
    assert abs(before.kl) < 1e-12
    assert after.max_abs_logit > 1e-2
    assert after.kl > 1e-4


@pytest.mark.parametrize(
    ("local_window", "q_chunk"),
    [(42, 5), (1000, 1), (37, 5), (0, 64)],
    ids=["window is the length", "wider", "whole chunks cover the rest", "one chunk"],
)
@pytest.mark.parametrize("null_token", ["none", "learned"])
def test_where_the_window_covers_everything_the_drift_is_exactly_zero(
    local_window: int, q_chunk: int, null_token: str
) -> None:
    model = make_model(null_token=null_token)  # float32: equal to the last bit, not to rounding
    path = attrs.evolve(PATH, local_window=local_window, q_chunk=q_chunk)
    (drift,) = measure_drift(model, DOCUMENTS, [Approximation(path, "mean")], slice_tokens=11)
    figures = drift.total.result()
    assert drift.plan.exact
    assert (figures.delta_nll, figures.kl, figures.max_abs_logit, figures.ppl_ratio) == (0.0, 0.0, 0.0, 1.0)
    tokens = torch.from_numpy(DOCUMENTS[0].astype(np.int64))[None]
    model.eval()
    with torch.no_grad(), model.long_sequence(path, summarizer="mean"):
        within = model(tokens)
    assert torch.equal(within, model(tokens))


@pytest.mark.parametrize("slice_tokens", [1, 5, 41, 42, 1000])
def test_the_size_of_the_slices_changes_nothing(model: LanguageModel, slice_tokens: int) -> None:
    (whole,) = measure_drift(model, DOCUMENTS, [BY_MEAN])
    (sliced,) = measure_drift(model, DOCUMENTS, [BY_MEAN], slice_tokens=slice_tokens)
    for one, other in zip(whole.documents, sliced.documents, strict=True):
        for name in ("nll", "reference_nll", "max_abs_logit", "kl", "tokens"):
            expected = one.curves()[name]
            np.testing.assert_allclose(other.curves()[name], expected, rtol=1e-9, atol=1e-12)


def test_one_exact_pass_serves_all_settings_and_logits_come_in_slices(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, logits, passes, approximated, seen = model.hidden, model.logits, [], [], []

    def note_pass(tokens):
        approximated.append(model.attentions[0]._at_evaluation is not None)
        return hidden(tokens)

    def note_logits(x):
        seen.append(x.shape[1])
        return logits(x)

    monkeypatch.setattr(model, "hidden", note_pass)
    monkeypatch.setattr(model, "logits", note_logits)
    paths = [PATH, attrs.evolve(PATH, mem_block=8), attrs.evolve(PATH, mass_correction=True)]
    settings = [Approximation(path, "mean") for path in paths]
    measure_drift(model, DOCUMENTS, settings, slice_tokens=8, on_pass=lambda: passes.append(1))
    assert approximated == [False, True, True, True] * 2
    assert len(passes) == 8
    assert max(seen) == 8


def test_each_setting_of_a_sweep_is_measured_as_if_alone(model: LanguageModel) -> None:
    paths = [PATH, attrs.evolve(PATH, mem_block=7, q_chunk=3), attrs.evolve(PATH, mass_correction=True)]
    settings = [Approximation(path, "mean") for path in paths]
    together = measure_drift(model, DOCUMENTS, settings)
    figures = {each.total.result().kl for each in together}
    assert len(figures) == 3, "the settings differ"
    for setting, found in zip(settings, together, strict=True):
        (alone,) = measure_drift(model, DOCUMENTS, [setting])
        assert alone.total.result() == found.total.result()


def test_keys_per_query_counts_what_a_query_reads(model: LanguageModel) -> None:
    (drift,) = measure_drift(model, DOCUMENTS, [BY_MEAN])
    read = []
    for t in range(42):
        far = max(0, t // 5 * 5 - 6) // 4
        read.append(far + t + 1 - 4 * far)
    assert keys_per_query(drift.plan) == pytest.approx(sum(read) / 42, rel=1e-12)


def test_the_model_is_left_as_it_was(model: LanguageModel) -> None:
    tokens = torch.from_numpy(DOCUMENTS[0].astype(np.int64))[None]
    model.train()
    names = set(model.state_dict())
    with torch.no_grad():
        trained = model(tokens)
        with model.long_sequence(PATH, summarizer="mean"):
            assert torch.equal(model(tokens), trained), "training is not touched"
        measure_drift(model, DOCUMENTS, [BY_MEAN])
        assert model.training
        model.eval()
        with pytest.raises(IndexError), model.long_sequence(PATH, summarizer="mean"):
            model(tokens + VOCAB - 1 if torch.equal(model(tokens), trained) else tokens[5])
        assert torch.equal(model(tokens), trained)
    assert set(model.state_dict()) == names


def test_a_pass_with_a_cache_or_a_mask_stays_exact(model: LanguageModel) -> None:
    layer = model.eval().attentions[0]
    x = torch.randn(1, 42, 32, dtype=torch.float64)
    mask = torch.ones(42, 42, dtype=torch.bool)
    exact = layer(x)
    with layer.long_sequence_at_evaluation(PATH, summarizer="mean") as path:
        assert path.name == "mean"
        assert (layer(x) - exact).abs().max() > 1e-3
        torch.testing.assert_close(layer(x, mask=mask), exact, rtol=1e-9, atol=1e-9)
        cache = layer.new_cache(batch=1, capacity=42, policy="ksem=fp32,kgeo=fp32,v=fp32")
        torch.testing.assert_close(layer(x, cache=cache), exact, rtol=1e-4, atol=1e-4)


TRAINED = LongSequenceConfig(threshold=20, mem_block=4, local_window=6, q_chunk=5)


def learned_model(summarizer: str) -> LanguageModel:
    """A model whose own summarizer is far from the mean."""
    model = make_model(knobs=TRAINED, summarizer=summarizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "summarizer" in name:
                parameter.add_(1.5)
    return model


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_the_own_summarizer_is_used_as_it_was_trained(name: str) -> None:
    model = learned_model(name)
    settings = [Approximation(TRAINED, summarizer) for summarizer in (None, name, "mean")]
    by_own, by_name, by_mean = measure_drift(model, DOCUMENTS, settings)
    assert (by_own.used.summarizer, by_mean.used.summarizer) == (name, "mean")
    assert by_own.total.result() == by_name.total.result()
    assert by_own.total.result().kl != pytest.approx(by_mean.total.result().kl, rel=1e-3)
    tokens = torch.from_numpy(DOCUMENTS[0].astype(np.int64))[None]
    with torch.no_grad():
        as_trained = model.train()(tokens)
        with model.eval().long_sequence(TRAINED):
            assert torch.equal(model(tokens), as_trained)


def test_trained_weights_serve_another_block_length_where_they_fit() -> None:
    model = learned_model("conv")
    longer = attrs.evolve(TRAINED, mem_block=6)
    (drift,) = measure_drift(model, DOCUMENTS, [Approximation(longer)])
    for attention in model.attentions:
        with attention.long_sequence_at_evaluation(longer) as path:
            assert path.summarizer is not attention.summarizer
            for key, value in attention.summarizer.state_dict().items():
                assert torch.equal(path.summarizer.state_dict()[key], value)
    assert drift.used.summarizer == "conv"
    with pytest.raises(UnsupportedError, match="are for mem_block=4 and do not fit mem_block=6; keep 4"):
        resolved_setting(learned_model("linear"), Approximation(longer))


@pytest.mark.parametrize("summarizer", ["linear", "conv"])
def test_a_summarizer_that_was_not_trained_is_refused_before_anything_runs(
    summarizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    monkeypatch.setattr(model, "hidden", None)
    with pytest.raises(UnsupportedError, match="whose weights this model was not trained with") as caught:
        measure_drift(model, DOCUMENTS, [BY_MEAN, Approximation(PATH, summarizer)])
    assert "'mean'" in str(caught.value)
    assert caught.value.reasons[0].subject == f"summarizer {summarizer!r}"


def test_refusals_name_what_is_allowed() -> None:
    with pytest.raises(PluginError, match="Did you mean 'mean'"):
        resolved_setting(make_model(), Approximation(PATH, "maen"))
    config = ModelConfig(
        vocab_size=VOCAB, d_model=32, n_layers=1, attention=AttentionConfig(mode="standard", n_heads=2)
    )
    with pytest.raises(UnsupportedError, match=r"no semantic keys.*mode='decoupled'"):
        resolved_setting(LanguageModel(config), BY_MEAN)


def test_settings_left_out_are_the_devices_and_auto_is_the_models_own() -> None:
    found = resolved_setting(make_model(), Approximation(LongSequenceConfig()))
    assert (found.config.mem_block, found.config.local_window, found.config.q_chunk) == (64, 512, 128)
    assert found.summarizer == "mean"
    assert resolved_setting(learned_model("conv"), Approximation(TRAINED, "auto")).summarizer == "conv"
