"""Names and shapes of a model's weights, from its configuration alone: comparing a file builds nothing.

    blocks.3.attn.q_geo.weight   [H*Dg, d_model]

A file that claims sizes which it does not hold is refused here, before anything is allocated by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dba_core.config.model import ModelConfig
from dba_core.errors import CheckpointError
from dba_core.printable import printable
from dba_core.registry.choice import PluginChoices

Shape = tuple[int, ...]


def check_shapes(
    config: ModelConfig, plugins: PluginChoices, given: Mapping[str, Shape], *, where: str
) -> None:
    """Raise CheckpointError unless `given` are the weights of the model, each with its shape.

    config: resolved. given: our names and the shapes that the file's headers say.
    """
    if config.n_layers > len(given):
        raise CheckpointError(
            f"{where} describes {config.n_layers} layers and holds {len(given)} weights; the file and its "
            "configuration do not belong together. Get both again"
        )
    wanted = dict(expected_shapes(config, plugins))
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    foreign = [
        f"{printable(name)} is not part of this architecture" for name in sorted(given.keys() - wanted.keys())
    ]
    problems = foreign[:3] + missing[:3]
    if problems:
        more = len(foreign) + len(missing) - len(problems)
        shown = "; ".join(problems) + (f"; and {more} more" if more else "")
        raise CheckpointError(
            f"{where} does not hold the weights of the model that it describes: {shown}. Download it again, "
            "or give a model of a supported family"
        )
    for name, shape in wanted.items():
        if given[name] != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {given[name]}, its configuration asks for {shape}; the file and "
                "its configuration do not belong together"
            )


def expected_shapes(config: ModelConfig, plugins: PluginChoices) -> Iterator[tuple[str, Shape]]:
    """Every weight of `LanguageModel(config, plugins=plugins)` but tables of rotation frequencies.

    config: resolved, without a semantic offset and without biases of the feed-forward part, as no source has.
    """
    assert config.vocab_size is not None
    assert config.embed_dim is not None
    width, embed = config.d_model, config.embed_dim
    yield "tok_emb.weight", (config.vocab_size, embed)
    if embed != width:
        yield "emb_in.weight", (width, embed)
        yield "emb_out.weight", (embed, width)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, embed)
    block = dict(_block(config, plugins))
    for layer in range(config.n_layers):
        for name, shape in block.items():
            yield f"blocks.{layer}.{name}", shape
    yield from _norm("ln_f", config)


def _block(config: ModelConfig, plugins: PluginChoices) -> Iterator[tuple[str, Shape]]:
    assert config.d_ff is not None
    width, ff = config.d_model, config.d_ff
    yield from _norm("ln1", config)
    yield from _norm("ln2", config)
    yield "ff.w_up.weight", (ff, width)
    yield "ff.w_down.weight", (width, ff)
    if config.mlp == "swiglu":
        yield "ff.w_gate.weight", (ff, width)
    for name, shape in _attention(config, plugins):
        yield f"attn.{name}", shape


def _norm(name: str, config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (config.d_model,)
    if config.norm == "layernorm" and config.has_norm_bias:
        yield f"{name}.bias", (config.d_model,)


def _attention(config: ModelConfig, plugins: PluginChoices) -> Iterator[tuple[str, Shape]]:
    shape, width, tied = config.attention.shape, config.d_model, config.attention.tie_qk
    heads, kv_heads = shape.n_heads, shape.n_kv_heads
    paths = {"geo": (shape.geo_head_dim, kv_heads), "sem": (shape.sem_head_dim, shape.cached_heads[0])}
    for path, (head_dim, key_heads) in paths.items():
        if head_dim:
            yield f"q_{path}.weight", (heads * head_dim, width)
        if head_dim and not tied:
            yield f"k_{path}.weight", (key_heads * head_dim, width)
        if head_dim and plugins.null_token.name == "learned":
            yield f"null_token.k_{path}_null", (kv_heads, head_dim)
    yield "v_proj.weight", (shape.cached_heads[2] * shape.v_head_dim, width)
    yield "out_proj.weight", (width, heads * shape.v_head_dim)
    if plugins.null_token.name == "learned":
        yield "null_token.v_null", (kv_heads, shape.v_head_dim)
    if config.attention.learned_temperature:
        yield "logit_scale", (heads,)
    if plugins.gate.name in ("causal", "static"):
        yield "gate.decoupled_gate_logit", (heads,)
    if plugins.gate.name == "causal":
        yield "gate.decoupled_gate_proj.weight", (heads, width)
