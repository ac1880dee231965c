"""from_dict(to_dict(x)) == x, through JSON and TOML too, for generated configurations of every class."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dba_cli.output.config_toml import render_toml
from dba_core.config import (
    AttentionConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    KVCachePolicy,
    LoadedConfig,
    LongSequenceConfig,
    ModelConfig,
    PluginChoice,
    PluginChoices,
    PluginRecord,
    RunConfig,
    TensorFormat,
    TrainingConfig,
)
from dba_core.config.loading import parse_json, parse_toml
from dba_core.config.model import MLPS, NORMS

counts = st.integers(1, 10**6)
shares = st.floats(0, 1, exclude_max=True)
positives = st.floats(1e-12, 1e12)
#: Everything UTF-8 can carry, control characters included; no lone surrogates, which no file can hold.
texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
plain = st.recursive(
    st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, width=32)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts, inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
).filter(lambda value: "inf" not in repr(value))


@st.composite
def attentions(draw: st.DrawFn) -> AttentionConfig:
    groups = draw(st.integers(1, 4))
    mode = draw(st.sampled_from(["standard", "gqa", "bottleneck", "decoupled"]))
    per_group = draw(st.integers(2, 4)) if mode == "gqa" else draw(st.integers(1, 4))
    return AttentionConfig(
        mode=mode,
        d_model=draw(st.none() | st.just(96)),
        n_heads=groups * per_group,
        n_kv_heads=groups,
        sem_head_dim=draw(st.integers(1, 16)) if mode == "decoupled" else draw(st.sampled_from([None, 0])),
        geo_head_dim=2 * draw(st.integers(1, 16)),
        v_head_dim=draw(st.integers(1, 16)),
        rope_theta=draw(positives),
        tie_qk=draw(st.booleans()) if per_group == 1 else False,
        learned_temperature=draw(st.booleans()),
        dropout=draw(shares),
    )


long_sequences = st.builds(
    LongSequenceConfig,
    enabled=st.booleans(),
    threshold=st.none() | counts,
    mem_block=st.none() | counts,
    local_window=st.none() | st.integers(0, 9),
    q_chunk=st.none() | counts,
    mass_correction=st.booleans(),
)
models = st.builds(
    ModelConfig,
    vocab_size=st.none() | counts,
    context=counts,
    n_layers=counts,
    d_model=st.just(96),
    d_ff=st.none() | counts,
    embed_dim=st.none() | counts,
    norm=st.sampled_from(NORMS),
    norm_eps=positives,
    mlp=st.sampled_from(MLPS),
    bias=st.booleans(),
    tie_embeddings=st.booleans(),
    dropout=shares,
    attention=attentions(),
    train_long_seq=long_sequences,
)
trainings = st.builds(
    TrainingConfig,
    steps=st.integers(0, 10**9),
    batch_size=st.integers(1, 8).map(lambda n: 4 * n),
    grad_accum=st.sampled_from([1, 2, 4]),
    lr=positives,
    beta2=shares,
    weight_decay=positives,
    compile=st.booleans(),
)
generations = st.builds(
    GenerationConfig,
    prompt=st.none() | texts,
    temperature=positives,
    top_k=st.none() | counts,
    top_p=st.none() | st.floats(1e-6, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(texts, max_size=3).map(tuple),
)
formats = st.one_of(
    st.sampled_from(("fp32", "fp16", "bf16")).map(TensorFormat),
    st.builds(
        TensorFormat, st.sampled_from(("q8_0", "q4_0", "nf4")), st.sampled_from((8, 16, 32, 64, 128, 256))
    ),
)
records = st.builds(
    PluginRecord,
    distribution=texts,
    version=texts,
    contract=st.integers(0, 9),
    how=st.sampled_from(["named", "auto", "recorded"]),
    why=texts,
)
choices = st.builds(
    PluginChoice,
    name=names,
    options=st.dictionaries(texts, plain, max_size=3),
    record=st.none() | records,
)
runs = st.builds(
    RunConfig,
    name=names,
    seed=st.integers(0, 2**63 - 1),
    device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    model=models,
    data=st.builds(DataConfig, source=names, tokenizer=names, held_out=st.floats(0.0001, 0.9)),
    training=trainings,
    evaluation=st.builds(EvaluationConfig, tokens=st.none() | counts),
    generation=generations,
    kv_policy=st.builds(KVCachePolicy, k_sem=formats, k_geo=formats, v=formats, residual=st.integers(0, 999)),
    plugins=st.builds(
        PluginChoices, summarizer=choices, gate=choices, null_token=choices, decode_backend=choices
    ),
)

slow_strategy = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow_strategy
@given(runs)
def test_dictionary_json_and_toml_read_back_the_same(config: RunConfig) -> None:
    data: dict[str, Any] = config.to_dict()
    assert RunConfig.from_dict(data) == config
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    assert RunConfig.from_dict(parse_json(text, source="text")) == config
    printed = render_toml(LoadedConfig(config=config, origins={}))
    assert RunConfig.from_dict(parse_toml(printed, source="text")) == config


@slow_strategy
@given(st.one_of(models, trainings, generations, attentions(), choices, long_sequences))
def test_every_part_reads_back_the_same(config: Any) -> None:
    assert type(config).from_dict(config.to_dict()) == config


@slow_strategy
@given(models)
def test_resolving_twice_changes_nothing(config: ModelConfig) -> None:
    resolved = config.resolved(vocab_size=1)
    assert resolved.resolved(vocab_size=1) == resolved
    assert ModelConfig.from_dict(resolved.to_dict()) == resolved.as_typed()
