"""`dba bench generate`: models of one size, filled caches, and the tokens that come after them."""

from __future__ import annotations

import sys

import pytest
import torch

from dba_core.report import SilentReporter

pytestmark = pytest.mark.torch

POLICIES = ("ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=4", "ksem=fp32,kgeo=fp32,v=fp32")


def tiny(**changes):
    from dba_plugins.bench.generate import GenerateBench

    sizes = {"d_model": 32, "layers": 2, "heads": 4, "d_ff": 48, "vocab_size": 61, "kv_policy": POLICIES}
    return GenerateBench(**{**sizes, "batch": (2,), "length": (9,), "new_tokens": 3, "repeats": 2, **changes})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_filled_cache_has_its_length_in_every_layer_and_the_bytes_of_its_policy(policy):
    from dba_core.cache.bytes import bytes_per_token
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_plugins.bench.generate import build_ours, filled_cache

    settings = tiny()
    model = build_ours(settings)
    chosen = KVCachePolicy.parse(policy)
    cache = filled_cache(model, chosen, batch=2, length=4100, room=4)  # more than one append
    assert cache.lengths == (4100, 4100)
    assert len(cache.layers) == 2
    per_token = sum(bytes_per_token(attention.shape, chosen) for attention in model.attentions)
    if not chosen.residual:
        assert cache.nbytes == 2 * (4100 + 4) * per_token
    else:
        assert cache.nbytes > 2 * (4100 + 4) * per_token


def test_our_greedy_tokens_are_the_argmax_of_the_whole_sequence():
    from dba_core.config.run import GenerationConfig
    from dba_core.generation.loop import generate
    from dba_plugins.bench.generate import build_ours

    model = build_ours(tiny())
    prompt = [5, 17, 2]
    new = generate(
        model, [prompt], GenerationConfig(max_new_tokens=8, temperature=0.0), kv_policy=POLICIES[1]
    )
    with torch.no_grad():
        for step in range(8):
            logits = model(torch.tensor([[*prompt, *new[0][:step]]]))
            assert int(logits[0, -1].argmax()) == new[0][step]


def test_models_of_different_sizes_are_not_compared():
    from dba_core.errors import ConfigError
    from dba_plugins.bench.generate import parameter_counts

    assert parameter_counts(torch.nn.Linear(10, 101), torch.nn.Linear(10, 100)) == (1111, 1100)
    with pytest.raises(ConfigError, match=r"1,144 parameters and the Llama 1,100, more than 2% apart"):
        parameter_counts(torch.nn.Linear(10, 104), torch.nn.Linear(10, 100))


def test_the_report_has_a_row_per_shape_and_cache():
    pytest.importorskip("transformers")
    from dba_plugins.bench.generate import run

    before = torch.get_num_threads()
    report = run(tiny(length=(9, 5), threads=(1,)), SilentReporter())
    assert torch.get_num_threads() == before
    assert [(row["length"], row["kind"]) for row in report.rows] == [
        (length, kind) for length in (9, 5) for kind in ("backend", "backend", "baseline", "baseline")
    ]
    for start in (0, 4):
        rows = report.rows[start : start + 4]
        fastest = min(row["ms"] for row in rows[2:])
        for row in rows:
            assert row["tokens_per_second"] == pytest.approx(2e3 / row["ms"])  # two sequences
            assert row["against_transformers"] == pytest.approx(fastest / row["ms"])
            assert row["low_ms"] <= row["ms"] <= row["high_ms"]
        assert [bool(row["backend"]) for row in rows] == [True, True, False, False]
        # keys and values of 32 channels, fp32, two layers, two sequences
        assert rows[2]["cache_megabytes"] == pytest.approx(
            2 * 2 * 2 * 32 * 4 * report.rows[start]["length"] / 1e6
        )


@pytest.mark.parametrize("static", [True, False])
def test_the_llama_decodes_after_its_filled_cache_and_goes_back_to_it(static):
    pytest.importorskip("transformers")
    from dba_plugins.bench.llama import FIRST, LlamaGenerator, build_llama

    llama = build_llama(tiny().model, seed=0)
    generator = LlamaGenerator(llama, batch=2, length=9, new_tokens=4, static=static)
    assert generator.length == 9
    tokens = generator.generate()
    assert generator.length == 9
    assert generator.generate() == tokens
    # by hand, one forward pass after the other, over a copy of the cached keys and values
    from transformers import DynamicCache

    cache = DynamicCache(config=llama.config)
    for number, layer in enumerate(generator._cache.layers):
        cache.update(layer.keys[:, :, :9].clone(), layer.values[:, :, :9].clone(), number)
    token = torch.full((2, 1), FIRST)
    with torch.no_grad():
        for step in range(4):
            token = llama(input_ids=token, cache=cache).logits[:, -1:].argmax(-1)
            assert token[:, 0].tolist() == [row[step] for row in tokens]


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    from dba_core.errors import UnsupportedError
    from dba_plugins.bench.generate import run

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"python -m pip install .*\[bench\]"):
        run(tiny(), SilentReporter())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": ()}, "no batch to measure; give at least one"),
        ({"length": (9, 0)}, "length: 0 is out of range; allowed: numbers >= 1"),
        ({"new_tokens": 0}, "new_tokens: 0 is out of range; allowed: numbers >= 1"),
        ({"threads": (-1,)}, "threads: -1 is out of range; allowed: numbers from 1 to 1024"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, text):
    from dba_core.errors import UsageError

    with pytest.raises(UsageError) as error:
        tiny(**changes)
    assert str(error.value) == text
