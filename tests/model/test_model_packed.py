"""A model whose weights are packed: what it computes is what its packed values say, in every layout."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from dba_core.attention.packed import PackedEmbedding, PackedLinear
from dba_core.config import GenerationConfig, ModelConfig
from dba_core.errors import PluginError, UnsupportedError
from dba_core.generation.loop import generate
from dba_core.model.language_model import LanguageModel

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

FORMATS = ("fp32", "bf16", "int8", "int4")
POLICY = "ksem=fp32,kgeo=fp32,v=fp32"
LAYOUTS = [
    {"mode": "decoupled", "n_heads": 4, "n_kv_heads": 2},
    {"mode": "decoupled", "n_heads": 4, "n_kv_heads": 2, "sem_offset": True, "rope_table": True},
    {"mode": "decoupled", "n_heads": 4, "n_kv_heads": 4, "tie_qk": True},
    {"mode": "standard", "n_heads": 4, "learned_temperature": True},
    {"mode": "gqa", "n_heads": 4, "n_kv_heads": 1},
    {"mode": "bottleneck", "n_heads": 2},
]


def model_of(attention: dict[str, object] | None = None, **changes: object) -> LanguageModel:
    """Two layers of width 32, with numbers in all that starts at zero or one."""
    sizes = {"vocab_size": 40, "d_model": 32, "n_layers": 2, "context": 64, **changes}
    config = ModelConfig.from_dict({**sizes, "attention": attention or LAYOUTS[0]})
    model = LanguageModel(config, seed=3).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, each in [*model.named_parameters(), *model.named_buffers()]:
            if (each.is_floating_point() and each.dim() == 1) or "offset" in name:
                each.add_(0.2 * torch.randn(each.shape, generator=generator))
    return model


def packed_of(model: LanguageModel, name: str) -> LanguageModel:
    packed = copy.deepcopy(model)
    assert packed.pack_weights(name) == []
    return packed


def with_packed_values(model: LanguageModel, packed: LanguageModel) -> LanguageModel:
    """The plain model in float64 with the values that the packed one multiplies with."""
    exact = copy.deepcopy(model).double()

    def values(module: PackedLinear | PackedEmbedding) -> Tensor:
        return module.packed.rows(torch.arange(module.packed.shape[0])).double()

    with torch.no_grad():
        exact.tok_emb.weight.copy_(values(packed.tok_emb))
        if exact.lm_head is not None:
            exact.lm_head.weight.copy_(values(packed.lm_head))
        for block, twin in zip(exact.blocks, packed.blocks, strict=True):
            attn, mine = block.attn, values(twin.attn.projection.packed)
            shape, (sem_heads, kv_heads, v_heads) = attn.shape, attn.shape.cached_heads
            n_heads, sem, geo = shape.n_heads, shape.sem_head_dim, shape.geo_head_dim
            sizes = [
                n_heads * geo,
                kv_heads * geo,
                n_heads * sem,
                sem_heads * sem,
                v_heads * shape.v_head_dim,
            ]
            q_geo, k_geo, q_sem, k_sem, v = mine.split(sizes)
            scale = 1.0 if attn.logit_scale is None else attn.logit_scale.exp()
            for part, width, module in ((q_geo, geo, attn.q_geo), (q_sem, sem, attn.q_sem)):
                if module is not None:
                    per_head = torch.as_tensor(scale * width**-0.5).expand(n_heads).repeat_interleave(width)
                    module.weight.copy_(part / per_head[:, None])
            for part, module in ((k_geo, attn.k_geo), (k_sem, attn.k_sem), (v, attn.v_proj)):
                if module is not None:
                    module.weight.copy_(part)
            attn.out_proj.weight.copy_(values(twin.attn.out_proj))
            ff, inner = block.ff, values(twin.ff.packed)
            branches = [each for each in (ff.w_gate, ff.w_up) if each is not None]
            for module, part in zip(branches, inner.chunk(len(branches)), strict=True):
                module.weight.copy_(part)
            ff.w_down.weight.copy_(values(twin.ff.w_down))
    return exact


def step_by_step(model: LanguageModel, tokens: Tensor, first: int) -> Tensor:
    """Logits of a prefill of `first` tokens and of one token after the other."""
    cache = model.new_cache(batch=len(tokens), capacity=tokens.shape[1], policy=POLICY)
    parts = [model(tokens[:, :first], cache=cache)]
    parts += [model(tokens[:, at : at + 1], cache=cache) for at in range(first, tokens.shape[1])]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: "-".join(map(str, each.values())))
@torch.no_grad()
def test_logits_are_those_of_the_packed_values_in_float64(layout: dict[str, object], name: str) -> None:
    if layout.get("tie_qk") and name != "fp32":
        return  # queries and keys share a weight, and each copy is rounded with its own scale
    gelu = layout["mode"] == "gqa"
    changes = {"mlp": "gelu", "bias": True, "tie_embeddings": False} if gelu else {}
    model = model_of(layout, **changes)
    packed = packed_of(model, name)
    tokens = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    exact = with_packed_values(model, packed)(tokens)
    size = float(exact.abs().max())
    assert float((packed(tokens) - exact).abs().max()) < 1e-4 * size
    assert float((step_by_step(packed, tokens, 17) - exact).abs().max()) < 1e-3 * size


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_text_is_that_of_the_packed_values_alone_and_in_a_batch(name: str) -> None:
    plain = model_of()
    model = packed_of(plain, name)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    config = GenerationConfig(max_new_tokens=12, temperature=0.0)
    together = generate(model, prompts, config, kv_policy=POLICY)
    exact = with_packed_values(plain, model).float()
    for prompt, tokens in zip(prompts, together, strict=True):
        assert generate(model, [prompt], config, kv_policy=POLICY) == [tokens]
        assert generate(exact, [prompt], config, kv_policy=POLICY) == [tokens]


def test_fp32_changes_nothing_but_the_rounding_and_int4_takes_the_least_memory() -> None:
    model = model_of(d_model=64)
    tokens = torch.arange(30).view(2, 15)
    with torch.no_grad():
        exact = model(tokens)
        assert float((packed_of(model, "fp32")(tokens) - exact).abs().max()) < 1e-5
    sizes = [packed_of(model, name).weight_bytes for name in FORMATS]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.3 * model.weight_bytes
    assert packed_of(model, "int8").n_parameters == model.n_parameters


def test_what_is_more_than_a_product_stays_and_is_named() -> None:
    model = model_of()
    model.blocks[0].attn.q_sem.register_forward_hook(lambda module, given, out: out * 2.0)
    model.blocks[1].ff.w_down = nn.Sequential(model.blocks[1].ff.w_down)
    tokens = torch.arange(10).view(1, 10)
    with torch.no_grad():
        before = model(tokens)
        left = model.pack_weights("fp32")
        names = [f"blocks.0.attn.{each}" for each in ("q_sem", "k_sem", "q_geo", "k_geo", "v_proj")]
        assert left == [*names, "blocks.1.ff.w_down"]
        assert torch.allclose(model(tokens), before, atol=1e-5)


def test_a_packed_model_is_not_trained_saved_or_packed_again() -> None:
    model = model_of()
    model.pack_weights("int8")
    with pytest.raises(UnsupportedError, match="packed weights are not trained"):
        model(torch.arange(6).view(1, 6))
    with pytest.raises(UnsupportedError, match="save the model before"):
        model.state_dict()
    with pytest.raises(UnsupportedError, match="packed already"):
        model.pack_weights("int4")


def test_an_unknown_format_leaves_the_model_as_it_was() -> None:
    model = model_of()
    with pytest.raises(PluginError, match="int8"):
        model.pack_weights("int7")
    assert model.weight_format is None
    model.loss(torch.arange(6).view(1, 6), torch.arange(6).view(1, 6)).backward()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_auto_loses_nothing(dtype: torch.dtype, name: str) -> None:
    model = model_of().to(dtype)
    weight = model.tok_emb.weight.detach().clone()
    model.pack_weights("auto")
    assert model.weight_format == name
    assert torch.equal(model.tok_emb(torch.arange(40)), weight)


@torch.no_grad()
def test_copies_and_pickles_compute_the_same() -> None:
    model = packed_of(model_of(), "int4")
    tokens = torch.arange(8).view(1, 8)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens), model(tokens))
