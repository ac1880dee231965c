"""Projections are called, not read: hooks, wrappers, adapters, injected projections take part on every path.

The oracle is a plain layer whose weights are what the changed modules compute, folded into one matrix each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from attention_oracle import layer_oracle, make_layer
from tolerances import TOL
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dba_core.attention.module import DecoupledAttention
from dba_core.attention.projections import Heads
from dba_core.attention.rope import RopeTable
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig

pytestmark = pytest.mark.torch

PROJECTIONS = ("q_sem", "k_sem", "q_geo", "k_geo", "v_proj")
LAYOUTS = {
    "plain": {"mode": "decoupled"},
    "grouped": {"mode": "decoupled", "n_kv_heads": 2, "null_token": "learned", "learned_temperature": True},
    "no semantic path": {"mode": "standard", "null_token": "learned"},
    "tied": {"mode": "decoupled", "tie_qk": True},
    "converted": {
        "mode": "decoupled",
        "n_kv_heads": 4,
        "sem_kv_heads": 1,
        "v_kv_heads": 2,
        "sem_offset": True,
        "rope_table": True,
    },
}
Change = Callable[[nn.Linear], tuple[nn.Module, Tensor]]
LONG = LongSequenceConfig(mem_block=2, local_window=4, q_chunk=2)
T = 11


class Adapter(nn.Module):
    """y = base(x) + scale B A x, as low-rank adapters have it; the base is frozen."""

    def __init__(self, base: nn.Linear, *, rank: int = 2, scale: float = 0.7) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        generator = torch.Generator().manual_seed(base.out_features)
        dtype = base.weight.dtype
        self.a = nn.Parameter(torch.randn(rank, base.in_features, generator=generator, dtype=dtype))
        self.b = nn.Parameter(torch.randn(base.out_features, rank, generator=generator, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * ((x @ self.a.T) @ self.b.T)

    def folded(self) -> Tensor:
        return self.base.weight + self.scale * self.b @ self.a


class Doubled(nn.Module):
    """A parametrization: the weight is twice what is stored."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def adapted(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    made = Adapter(module)
    return made, made.folded()


def wrapped(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(module, nn.Identity()), module.weight


def hooked(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    module.register_forward_hook(lambda _module, _given, y: 1.5 * y)
    return module, 1.5 * module.weight


def hooked_before(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    module.register_forward_pre_hook(lambda _module, given: (0.5 * given[0],))
    return module, 0.5 * module.weight


def parametrized(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    weight = 2 * module.weight.detach()
    return parametrize.register_parametrization(module, "weight", Doubled()), weight


def with_a_forward_of_its_own(module: nn.Linear) -> tuple[nn.Module, Tensor]:
    inner = module.forward
    module.forward = lambda x: -inner(x)  # type: ignore[method-assign]
    return module, -module.weight


CHANGES = (adapted, wrapped, hooked, hooked_before, parametrized, with_a_forward_of_its_own)


def layers(
    layout: str,
    change: Callable[[nn.Linear], tuple[nn.Module, Tensor]],
    *,
    names: tuple[str, ...] = PROJECTIONS,
) -> tuple[DecoupledAttention, DecoupledAttention]:
    """A layer with changed projections, and a plain one that computes the same; float64."""
    changed = make_layer(**LAYOUTS[layout]).double().eval()
    if changed.sem_offset is not None:
        changed.sem_offset.normal_(generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(changed)
    for name in names:
        module = getattr(changed, name)
        if module is None:
            continue
        made, weight = change(module)
        setattr(changed, name, made)
        with torch.no_grad():
            getattr(plain, name).weight.copy_(weight)
    return changed, plain


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_projection_takes_part_on_every_path(layout: str, change: Change) -> None:
    changed, plain = layers(layout, change)
    x = torch.randn(2, T, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = make_layer(**LAYOUTS[layout]).double()(x)
    expected = plain(x)
    if change is not wrapped:
        assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(changed(x), expected, **TOL["float64"])
    if layout != "converted":
        torch.testing.assert_close(changed(x), layer_oracle(plain, x), **TOL["float64"])
    seen = torch.rand(T, T, generator=torch.Generator().manual_seed(3)) < 0.6
    torch.testing.assert_close(changed(x, mask=seen), plain(x, mask=seen), **TOL["float64"])
    cache = changed.new_cache(batch=2, capacity=T, policy="ksem=fp32,kgeo=fp32,v=fp32")
    cached = [changed(part, cache=cache) for part in x.split((6, 3, 1, 1), dim=1)]
    torch.testing.assert_close(torch.cat(cached, dim=1), expected, **TOL["float32"])
    if changed.shape.sem_head_dim:
        with changed.long_sequence_at_evaluation(LONG), plain.long_sequence_at_evaluation(LONG):
            torch.testing.assert_close(changed(x), plain(x), **TOL["float64"])
            assert (changed(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", PROJECTIONS)
@torch.no_grad()
def test_one_changed_projection_is_enough(name: str) -> None:
    changed, plain = layers("grouped", hooked, names=(name,))
    x = torch.randn(2, T, 24, dtype=torch.float64)
    torch.testing.assert_close(changed(x), plain(x), **TOL["float64"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("long", [False, True], ids=["exact", "long"])
def test_gradients_of_an_adapter_are_those_of_the_folded_weights(layout: str, long: bool) -> None:
    changed, plain = layers(layout, adapted)
    if long and not changed.shape.sem_head_dim:
        return
    x = torch.randn(2, T, 24, dtype=torch.float64)
    upstream = torch.randn(2, T, 24, dtype=torch.float64)
    adapters = {name: m for name in PROJECTIONS if isinstance(m := getattr(changed, name), Adapter)}
    folded = {f"{name}.weight": each.folded() for name, each in adapters.items()}
    trained = [p for each in adapters.values() for p in (each.a, each.b)]

    def outputs() -> tuple[Tensor, Tensor]:
        return changed(x), torch.func.functional_call(plain, folded, x)

    if long:
        with changed.long_sequence_at_evaluation(LONG), plain.long_sequence_at_evaluation(LONG):
            got, expected = outputs()
    else:
        got, expected = outputs()
    found = torch.autograd.grad(got, trained, upstream)
    wanted = torch.autograd.grad(expected, trained, upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **TOL["float64"])
        assert one.abs().max() > 0


def test_a_removed_hook_gives_the_bits_of_the_plain_layer() -> None:
    layer = make_layer(mode="decoupled", null_token="learned")
    x = torch.randn(2, T, 24)
    plain = layer(x)
    hook = layer.q_geo.register_forward_hook(lambda _module, _given, y: y)
    torch.testing.assert_close(layer(x), plain, **TOL["float32"])
    hook.remove()
    assert torch.equal(layer(x), plain)


@torch.no_grad()
def test_an_adapter_is_compiled_and_cast_as_a_matrix_is() -> None:
    changed, plain = (each.float() for each in layers("grouped", adapted))
    x = torch.randn(2, T, 24)
    compiled = torch.compile(changed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x), **TOL["float32"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = changed(x)
    assert got.dtype == torch.bfloat16
    off = (got.float() - plain(x)).norm() / plain(x).norm()
    assert off < TOL["bfloat16"]["rtol"]


class Halved:
    """A projection that is another layer's with half of every value."""

    def __init__(self, source: DecoupledAttention) -> None:
        self.source = source

    @property
    def rope(self) -> RopeTable:
        return self.source.rope

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        heads = self.source.project(x, cos, sin)
        return heads._replace(v=0.5 * heads.v)


@torch.no_grad()
def test_an_injected_projection_serves_every_path_in_place_of_the_layers_own() -> None:
    source = make_layer(mode="decoupled").double()
    layer = DecoupledAttention(
        AttentionConfig(d_model=24, n_heads=4), projection=Halved(source), gate="none", null_token="none"
    )
    layer.out_proj = source.out_proj
    assert set(layer.state_dict()) == {"out_proj.weight"}
    plain = make_layer(mode="decoupled", gate="none").double()
    plain.load_state_dict({k: v for k, v in source.state_dict().items() if k in plain.state_dict()})
    plain.v_proj.weight.mul_(0.5)
    x = torch.randn(2, T, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), **TOL["float64"])
    cache = layer.new_cache(batch=2, capacity=T, policy="ksem=fp32,kgeo=fp32,v=fp32")
    cached = torch.cat([layer(part, cache=cache) for part in x.split((9, 1, 1), dim=1)], dim=1)
    torch.testing.assert_close(cached, plain(x), **TOL["float32"])
    with layer.eval().long_sequence_at_evaluation(LONG), plain.eval().long_sequence_at_evaluation(LONG):
        torch.testing.assert_close(layer(x), plain(x), **TOL["float64"])


def written_in_place(layer: DecoupledAttention) -> None:
    layer.q_geo.weight.mul_(1.5)


def replaced(layer: DecoupledAttention) -> None:
    layer.v_proj.weight = nn.Parameter(2 * layer.v_proj.weight)


def written_past_torch(layer: DecoupledAttention) -> None:
    layer.k_geo.weight.data.mul_(1.5)


def temperature(layer: DecoupledAttention) -> None:
    layer.logit_scale.add_(0.5)


def hook_added(layer: DecoupledAttention) -> None:
    layer.k_sem.register_forward_hook(lambda _module, _given, y: 2 * y)


@pytest.mark.parametrize("gate", ["none", "causal"])
@pytest.mark.parametrize("edit", [written_in_place, replaced, written_past_torch, temperature, hook_added])
@torch.no_grad()
def test_a_token_is_decoded_with_the_weights_as_they_are(
    edit: Callable[[DecoupledAttention], None], gate: str
) -> None:
    """One matrix of all projections, kept between tokens, follows every change of theirs."""
    layer = make_layer(mode="decoupled", n_kv_heads=2, learned_temperature=True, gate=gate).double().eval()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    made = layer.new_cache(batch=2, capacity=3, policy="ksem=fp32,kgeo=fp32,v=fp32")
    layer(x[:, :2], cache=made)
    layer(x[:, 2:], cache=made)
    assert layer._one_matrix is not None
    copied = copy.deepcopy(layer)
    assert copied._one_matrix is None
    for each in (layer, copied):
        edit(each)
        cache = each.new_cache(batch=2, capacity=3, policy="ksem=fp32,kgeo=fp32,v=fp32")
        got = torch.cat([each(token, cache=cache) for token in x.split(1, dim=1)], dim=1)
        torch.testing.assert_close(got, each(x), **TOL["float32"])


@torch.no_grad()
def test_an_edit_between_two_tokens_of_a_cache_is_read() -> None:
    layer = make_layer(mode="decoupled").double().eval()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    cache = layer.new_cache(batch=2, capacity=3, policy="ksem=fp32,kgeo=fp32,v=fp32")
    for token in x[:, :2].split(1, dim=1):
        layer(token, cache=cache)
    written_in_place(layer)
    heads = layer._heads(x[:, 2:], *layer.rope.span(2, 3, x))
    with torch.enable_grad():
        called = layer._heads(x[:, 2:], *layer.rope.span(2, 3, x))
    for one, other in zip(heads, called, strict=True):
        torch.testing.assert_close(one, other.detach(), **TOL["float64"])


@torch.inference_mode()
def test_weights_made_in_inference_mode_are_called() -> None:
    """Torch counts no writes to them, so that no matrix of them is kept."""
    layer = make_layer(mode="decoupled").eval()
    x = torch.randn(2, 2, 24)
    cache = layer.new_cache(batch=2, capacity=2, policy="ksem=fp32,kgeo=fp32,v=fp32")
    got = torch.cat([layer(token, cache=cache) for token in x.split(1, dim=1)], dim=1)
    assert layer._one_matrix is None
    torch.testing.assert_close(got, layer(x), **TOL["float32"])
