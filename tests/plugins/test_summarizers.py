"""The summarizers: values, the mean at first, gradients, block independence, what is refused."""

from __future__ import annotations

import pytest
import torch
from tolerances import TOL

from dba_core.attention.long_sequence.attention import long_sequence_attention
from dba_core.attention.long_sequence.plan import LongSequencePlan
from dba_core.attention.projections import Heads
from dba_core.contracts import AttentionShape, SummarizerRequest
from dba_core.errors import ConfigError, UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice

pytestmark = pytest.mark.torch

L = 6
SHAPE = AttentionShape(d_model=16, n_heads=4, n_kv_heads=2, sem_head_dim=3, geo_head_dim=4, v_head_dim=5)
NO_SEMANTICS = AttentionShape(
    d_model=16, n_heads=4, n_kv_heads=2, sem_head_dim=0, geo_head_dim=4, v_head_dim=5
)
NAMES = ("mean", "linear", "conv")
LEARNED = (
    ("linear", {}),
    ("linear", {"shared": True}),
    ("linear", {"channel_map": False}),
    ("conv", {}),
    ("conv", {"shared": True, "kernel_size": 5}),
    ("conv", {"kernel_size": 1}),
)


def select(name: str, *, shape=SHAPE, mem_block: int = L, device="cpu", dtype="float32", **options: object):
    request = SummarizerRequest(shape=shape, mem_block=mem_block, device=device, dtype=dtype)
    return Registry.default().select("summarizer", PluginChoice(name, options=options), request)


def build(name: str, **options):
    return select(name, **options).build()


def trained(name: str, **options):
    """One whose every parameter is drawn at random, float64."""
    module = build(name, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5)
    return module


def blocks(*, batch: int = 2, n: int = 4, mem_block: int = L, sem: int = 3, dtype=torch.float64):
    """Blocks as attention gives them: views of [B, T, G, D] tokens."""
    return [
        torch.randn(batch, n * mem_block, 2, width, dtype=dtype).transpose(1, 2).unflatten(2, (n, mem_block))
        for width in (sem, 5)
    ]


def test_mean_is_the_mean() -> None:
    k, v = blocks()
    k_mem, v_mem = build("mean")(k, v)
    torch.testing.assert_close(k_mem, sum(k[:, :, :, i] for i in range(L)) / L, **TOL["float64"])
    torch.testing.assert_close(v_mem, sum(v[:, :, :, i] for i in range(L)) / L, **TOL["float64"])


def test_mean_in_bfloat16_is_rounded_once() -> None:
    k, v = blocks(mem_block=48, dtype=torch.bfloat16)
    k_mem, v_mem = build("mean", mem_block=48)(k, v)
    assert k_mem.dtype == v_mem.dtype == torch.bfloat16
    for summary, tokens in ((k_mem, k), (v_mem, v)):
        exact = tokens.double().mean(3)
        torch.testing.assert_close(summary.double(), exact, rtol=2**-8 * 1.01, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_learned_ones_equal_the_mean_at_first(name: str, options: dict, dtype) -> None:
    given = blocks(dtype=dtype)
    for ours, mean in zip(build(name, **options).to(dtype)(*given), build("mean")(*given), strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, mean)


def test_linear_is_the_mean_plus_weighted_positions_through_a_channel_map() -> None:
    module = trained("linear")
    for part, x in ((module.k, blocks()[0]), (module.v, blocks()[1])):
        expected = torch.stack([x[:, :, :, i] for i in range(L)]).mean(0)
        for g in range(2):
            for d in range(x.shape[-1]):
                for e in range(x.shape[-1]):
                    weighted = sum(part.position[g, i] * x[:, g, :, i, d] for i in range(L))
                    expected[:, g, :, e] += part.residual_scale[g] * part.channel[g, d, e] * weighted
        torch.testing.assert_close(part(x), expected, **TOL["float64"])


def test_conv_is_the_mean_plus_pooled_features_within_the_block() -> None:
    module = trained("conv", kernel_size=5)
    for part, x in ((module.k, blocks()[0]), (module.v, blocks()[1])):
        expected = torch.stack([x[:, :, :, i] for i in range(L)]).mean(0)
        for g in range(2):
            for i in range(L):
                inside = [(j, i + j - 2) for j in range(5) if 0 <= i + j - 2 < L]
                feature = sum(part.kernel[g, :, j] * x[:, g, :, at] for j, at in inside)
                expected[:, g] += part.residual_scale[g] * feature / (1 + torch.exp(-feature)) / L
        torch.testing.assert_close(part(x), expected, **TOL["float64"])


@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_shared_weights_are_the_same_for_every_head(name: str, options: dict) -> None:
    heads = 1 if options.get("shared") else 2
    assert all(len(parameter) == heads for parameter in build(name, **options).parameters())
    if heads == 1:
        module = trained(name, **options)
        k, v = blocks()
        k_mem, v_mem = module(k.flip(1), v.flip(1))
        for flipped, plain in zip((k_mem, v_mem), module(k, v), strict=True):
            torch.testing.assert_close(flipped.flip(1), plain, **TOL["float64"])


def test_parameter_names_and_shapes() -> None:
    def shapes(name: str, **options: object) -> dict[str, tuple[int, ...]]:
        return {n: tuple(p.shape) for n, p in build(name, **options).named_parameters()}

    assert shapes("mean") == {}
    assert shapes("linear") == {
        "k.residual_scale": (2,),
        "k.position": (2, L),
        "k.channel": (2, 3, 3),
        "v.residual_scale": (2,),
        "v.position": (2, L),
        "v.channel": (2, 5, 5),
    }
    assert shapes("conv", kernel_size=5) == {
        "k.residual_scale": (2,),
        "k.kernel": (2, 3, 5),
        "v.residual_scale": (2,),
        "v.kernel": (2, 5, 5),
    }
    assert list(shapes("linear", channel_map=False, shared=True)) == [
        "k.residual_scale",
        "k.position",
        "v.residual_scale",
        "v.position",
    ]


@pytest.mark.parametrize(("name", "options"), [("mean", {}), *LEARNED])
def test_a_block_depends_on_itself_alone(name: str, options: dict) -> None:
    module = build(name, **options) if name == "mean" else trained(name, **options)
    module, given = module.float(), blocks(dtype=torch.float32)
    before = module(*given)
    for n in range(4):
        changed = [x.clone() for x in given]
        for x in changed:
            x[:, :, n] += torch.randn_like(x[:, :, n])
        others = [m for m in range(4) if m != n]
        for after, was in zip(module(*changed), before, strict=True):
            assert torch.equal(after[:, :, others], was[:, :, others])
            assert (after[:, :, n] != was[:, :, n]).all()
    alone = module(*(x[:, :, 2:3] for x in given))
    for one, all_blocks in zip(alone, before, strict=True):
        torch.testing.assert_close(one, all_blocks[:, :, 2:3], **TOL["float32"])


@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_every_token_of_a_block_has_influence(name: str, options: dict) -> None:
    module = trained(name, **options)
    given = [x.requires_grad_() for x in blocks()]
    sum(x.sin().sum() for x in module(*given)).backward()
    assert all((x.grad != 0).all() for x in given)


@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_gradients(name: str, options: dict) -> None:
    module = trained(name, **options)
    given = [x.requires_grad_() for x in blocks(batch=1, n=2)]
    parameters = tuple(module.parameters())

    def outputs(*_):
        return module(*given)

    assert torch.autograd.gradcheck(outputs, (*given, *parameters))


@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_the_scale_learns_at_step_0_and_the_weights_after(name: str, options: dict) -> None:
    module = build(name, **options)
    scales = {n: p for n, p in module.named_parameters() if n.endswith("residual_scale")}
    weights = {n: p for n, p in module.named_parameters() if n not in scales}
    assert scales
    assert weights

    def backward() -> None:
        module.zero_grad()
        torch.manual_seed(1)
        q_sem, q_geo = torch.randn(1, 4, 90, 3), torch.randn(1, 4, 90, 4)
        k_sem, k_geo, v = (torch.randn(1, 2, 90, width) for width in (3, 4, 5))
        plan = LongSequencePlan(length=90, mem_block=L, local_window=20, q_chunk=15, mass_correction=True)
        out = long_sequence_attention(
            Heads(q_sem, q_geo, k_sem, k_geo, v),
            plan=plan,
            summarizer=module,
            null=None,
        )
        out.square().sum().backward()

    backward()
    assert all((scale.grad != 0).all() for scale in scales.values())
    assert all((weight.grad == 0).all() for weight in weights.values())
    with torch.no_grad():
        for scale in scales.values():
            scale -= 0.01 * scale.grad
    backward()
    assert all((weight.grad != 0).any(dim=-1).all() for weight in weights.values())


@pytest.mark.parametrize("name", NAMES)
def test_without_a_semantic_path(name: str) -> None:
    module = build(name, shape=NO_SEMANTICS)
    assert not [n for n, _ in module.named_parameters() if n.startswith("k.")]
    k, v = blocks(sem=0, dtype=torch.float32)
    k_mem, v_mem = module(k, v)
    assert k_mem.shape == (2, 2, 4, 0)
    torch.testing.assert_close(v_mem, v.mean(3), **TOL["float32"])


@pytest.mark.parametrize("name", NAMES)
def test_building_draws_no_random_number_and_is_the_same_every_time(name: str) -> None:
    before = torch.get_rng_state()
    first = build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    second = build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_gives_finite_summaries_near_the_mean(name: str) -> None:
    given = blocks(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = build(name)(*given)
    for summary, tokens in zip(made, given, strict=True):
        assert summary.dtype == torch.bfloat16
        torch.testing.assert_close(summary.double(), tokens.double().mean(3), **TOL["bfloat16"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_supported(name: str, dtype: str, device: str) -> None:
    selection = select(name, dtype=dtype, device=device)
    assert selection.plugin.supports(selection.request, selection.options).ok


def test_auto_takes_conv_on_cuda_and_linear_elsewhere() -> None:
    assert select("auto").name == "linear"
    assert select("auto", device="cuda:0").name == "conv"
    assert select("auto", mem_block=1).name == "mean"  # linear has nothing to weigh there
    small = select("auto", mem_block=2, device="cuda")
    assert small.name == "linear"
    assert "conv" in small.why


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="dtype: got float16; supported: float32 or bfloat16"):
        build(name, dtype="float16")


def test_a_block_of_one_token_has_no_positions() -> None:
    with pytest.raises(UnsupportedError, match=r"mem_block: got 1 .*supported: 2 or more.*summarizer=mean"):
        build("linear", mem_block=1)


def test_a_kernel_wider_than_the_block_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match="kernel_size: got 7 for blocks of 6 tokens; supported: at most"
    ):
        build("conv", kernel_size=7)


@pytest.mark.parametrize("size", [0, -1, 4])
def test_kernel_sizes_are_odd(size: int) -> None:
    with pytest.raises(ConfigError, match=f"{size} is not allowed; give an odd number"):
        select("conv", kernel_size=size)


@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_state_round_trip(name: str, options: dict) -> None:
    module, other = trained(name, **options), build(name, **options).double()
    other.load_state_dict(module.state_dict())
    given = blocks()
    for ours, theirs in zip(module(*given), other(*given), strict=True):
        assert torch.equal(ours, theirs)
