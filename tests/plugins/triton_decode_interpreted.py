"""The Triton decode kernels, run by Triton's interpreter; started by test_triton_decode in its own process.

The interpreter must be on before triton is imported, so that this is no module of the usual session.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
import triton_interpreter  # noqa: F401 - makes the interpreter quicker
import triton_reference as reference
from decode_cases import expected, request
from triton_decode_cases import (
    MANY,
    NARROW,
    ODD,
    SHARED,
    SINGLE,
    STUDIED,
    WIDE,
    Case,
    built,
    compare,
    poisoned,
    prepared,
)

from dba_core.attention.decode import decode_request
from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import NullKV
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice
from dba_plugins.decode.triton.backend import Step, attend, merge

# numpy, which interprets, warns where 2^(m - m') underflows and where poison is converted
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"),
]

FORMATS = ("fp16", "bf16", "q8_0", "q4_0", "nf4")
BLOCKS = (
    "ksem=q8_0@16,kgeo=q4_0@64,v=q8_0@16",
    "ksem=nf4@64,kgeo=nf4@16,v=nf4@16",
    "ksem=q4_0@8,kgeo=q8_0@8,v=nf4@8",
)


def check(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch)
    cache, tensors, q_sem, q_geo, null = prepared(case)
    got = built(case, cache).decode(q_sem, q_geo, cache, null=null, needs_lse=True)
    compare(case, got, cache, tensors, q_sem, q_geo, null)


MIXES = [tuple(FORMATS[(i + j * k) % 5] for k in range(3)) for j in (1, 2) for i in range(5)]
PLAIN = "ksem=fp16,kgeo=fp16,v=fp16"
RESIDUAL = (
    (f"{STUDIED},resid=5", 1, True),
    (f"{STUDIED},resid=38", 2, False),
    (f"{STUDIED},resid=128", 2, True),
    ("ksem=bf16,kgeo=q8_0,v=fp16,resid=20", 1, False),
    ("ksem=nf4,kgeo=fp16,v=q8_0@16,resid=20", 2, True),
)
QUERIES = (
    (torch.bfloat16, STUDIED, 2),
    (torch.bfloat16, "ksem=bf16,kgeo=bf16,v=bf16", 1),
    (torch.float32, f"{STUDIED},resid=9", 1),
    (torch.float32, "ksem=nf4,kgeo=bf16,v=nf4", 2),
    (torch.float32, "ksem=fp16,kgeo=q8_0@16,v=bf16", 2),
    (torch.float32, "ksem=fp32,kgeo=fp32,v=fp32", 2),
    (torch.float16, "ksem=q4_0,kgeo=fp32,v=fp32,resid=5", 1),
)
SMALL = [
    # every format in every tensor
    *(
        Case(
            policy=f"ksem={a},kgeo={b},v={c}",
            sizes=SINGLE,
            lengths=(33, 0),
            null=i % 2 == 1,
            passes=1 + i % 2,
        )
        for i, (a, b, c) in enumerate(MIXES)
    ),
    # lengths around the block
    *(Case(lengths=(n, 63 - n % 8), passes=passes) for n in (0, 1, 31, 32, 33, 97) for passes in (1, 2)),
    # splits: one, as many as blocks, more than blocks; several launches of one pass
    *(Case(lengths=(130, 5), options={"splits": n}, null=True) for n in (1, 3, 9)),
    *(
        Case(lengths=(130, 40), options={"tokens_per_launch": n}, null=True, passes=1, policy=policy)
        for n, policy in ((32, STUDIED), (64, STUDIED), (96, PLAIN))
    ),
    # residual window: a part, on a block's edge, everything; float formats beside it
    *(Case(policy=policy, lengths=(70, 20), passes=p, null=null) for policy, p, null in RESIDUAL),
    # heads: many in a group, one, tensors with different numbers of them
    *(Case(sizes=sizes, passes=passes, null=True) for sizes in (MANY, SINGLE, SHARED) for passes in (1, 2)),
    # widths that no tensor core takes, and blocks of scales that straddle heads
    *(Case(sizes=s, lengths=(19, 3), null=True, policy=f"{BLOCKS[2]},resid=4") for s in (ODD, NARROW)),
    *(Case(policy=policy, lengths=(40, 0)) for policy in BLOCKS),
    Case(sizes=WIDE, lengths=(17,), passes=1),
    *(Case(dtype=dtype, policy=policy, null=True, passes=passes) for dtype, policy, passes in QUERIES),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_float64(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


#: (sizes, lengths, residual window, null), in turns.
SHAPES = (
    ((4, 2, 2, 2, 32, 32, 48), (35, 1), ",resid=7", True),
    ((3, 1, 1, 1, 16, 48, 32), (16, 33), "", False),
)


def every_pair(names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Triples in which any two places take every pair of names, in as few as can be: a Latin square."""
    for a, b in itertools.product(range(len(names)), repeat=2):
        yield names[a], names[b], names[(a + b) % len(names)]


WIDE_GRID = [
    Case(
        policy=f"ksem={a},kgeo={b},v={c}{resid}",
        sizes=sizes,
        lengths=lengths,
        null=null,
        passes=1 + i // 2 % 2,
    )
    for i, (a, b, c) in enumerate(every_pair(FORMATS))
    for sizes, lengths, resid, null in (SHAPES[i % 2],)
]


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE_GRID, ids=str)
def test_equals_float64_for_every_pair_of_formats(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("splits", [2, 3, 6])
@pytest.mark.parametrize("policy", [STUDIED, f"{STUDIED},resid=40"])
def test_every_state_is_that_of_the_reference(policy: str, splits: int) -> None:
    case = Case(policy=policy, lengths=(130, 33), null=True, dtype=torch.float32)
    cache, _, q_sem, q_geo, null = prepared(case)
    backend = built(case, cache)
    step = Step.of(q_sem, q_geo, cache, null, needs_lse=True)
    output, state = step.new_output(), step.new_state(splits).fill_(torch.nan)
    attend(backend.spec, backend.options, step, output, state, splits=splits, begin=0, end=cache.capacity)
    wanted = reference.states(q_sem, q_geo, cache, splits=splits, block=32)
    torch.testing.assert_close(state.double(), wanted, rtol=1e-5, atol=1e-5)
    merge(backend.spec, step, output, state)
    right = reference.merge(wanted, q_sem, q_geo, null)
    torch.testing.assert_close(output.out.double(), right.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.lse.double(), right.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4])
@pytest.mark.parametrize("passes", [1, 2])
def test_values_of_any_size(scale: float, passes: int) -> None:
    """Scales of values that no fp16 number holds, and keys that need as large queries."""
    case = Case(passes=passes, dtype=torch.float32, null=True, lengths=(70, 33))
    cache, tensors, q_sem, q_geo, null = prepared(case)
    cache.reset()
    tensors = [x * scale for x in tensors]
    cache.append(*tensors, counts=case.lengths)
    q_sem, q_geo = q_sem / scale, q_geo / scale
    null = NullKV(k_sem=null.k_sem * scale, k_geo=null.k_geo * scale, v=null.v * scale)
    got = built(case, cache).decode(q_sem, q_geo, cache, null=null, needs_lse=True)
    out, lse = expected(q_sem, q_geo, cache, tensors, null)
    torch.testing.assert_close(got.out.double() / scale, out / scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.lse.double(), lse, rtol=1e-5, atol=1e-5)


def test_large_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    check(Case(scale=300.0, dtype=torch.float32, policy="ksem=fp16,kgeo=fp16,v=fp16"), monkeypatch)


def test_addresses_past_two_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 million tokens of 3 heads of 64 bytes: the last head begins 2.2 GB on; little of that is touched."""
    monkeypatch.setattr(torch, "zeros", torch.empty)  # zeros would be written, and so take 4 GB
    capacity = 17_000_000
    case = Case(sizes=(3, 3, 3, 3, 0, 64, 16), lengths=(0,), dtype=torch.float32, passes=1)
    cache = LayerCache(registry=Registry.default(),
        k_sem=(3, 0), k_geo=(3, 64), v=(3, 16), batch=1, capacity=capacity,
        policy=KVCachePolicy.parse("ksem=fp16,kgeo=q8_0,v=q8_0"),
    )  # fmt: skip
    first = capacity - 32
    assert cache.k_geo.codes.stride(1) * 2 > 2**31
    torch.manual_seed(0)
    cache.k_geo.codes[:, :, first:] = torch.randint(-127, 128, (1, 3, 32, 64), dtype=torch.int8)
    cache.v.codes[:, :, first:] = torch.randint(-127, 128, (1, 3, 32, 16), dtype=torch.int8)
    cache.k_geo.scales[:, :, first:] = 0.01
    cache.v.scales[:, :, first:] = 0.01
    cache.lengths_device.fill_(capacity)
    q_sem, q_geo = torch.empty(1, 3, 0), torch.randn(1, 3, 64) / 8
    backend = built(case, cache)
    step = Step.of(q_sem, q_geo, cache, None, needs_lse=True)
    output, state = step.new_output(), step.new_state(1).zero_()
    state[..., -2] = -1e30
    attend(backend.spec, backend.options, step, output, state, splits=1, begin=first, end=capacity)
    k, v = (
        x[0, :, first:].double() * float(torch.tensor(0.01).bfloat16())
        for x in (cache.k_geo.codes, cache.v.codes)
    )
    weights = torch.einsum("hd,hnd->hn", q_geo[0].double(), k).softmax(-1)
    torch.testing.assert_close(
        output.out[0].double(), torch.einsum("hn,hnd->hd", weights, v), rtol=1e-5, atol=1e-5
    )


def test_replayed_launches_follow_the_lengths_on_the_device() -> None:
    """As a CUDA graph does: the same launch after the device's lengths have grown, the host's have not."""
    case = Case(lengths=(70, 33), dtype=torch.float32, policy=f"{STUDIED},resid=6")
    cache, _, q_sem, q_geo, _ = prepared(case)
    backend = built(case, cache)
    wanted = backend.decode(q_sem, q_geo, cache).out
    whole = cache.lengths
    cache.truncate([n - 2 for n in whole])
    shorter = backend.decode(q_sem, q_geo, cache).out
    assert not torch.equal(shorter, wanted)
    cache.lengths_device.add_(2)
    assert torch.equal(backend.decode(q_sem, q_geo, cache).out, wanted)


@pytest.mark.parametrize("name", ["triton_1pass", "triton_2pass"])
def test_the_registry_builds_it_where_the_interpreter_is_on(name: str) -> None:
    case = Case(lengths=(40, 7), dtype=torch.float32)
    cache, tensors, q_sem, q_geo, _ = prepared(case)
    asked = decode_request(request(case.sizes).shape, cache, has_null=False, dtype=torch.float32)
    backend = Registry.default().select("decode_backend", PluginChoice(name), asked).build()
    got = backend.decode(q_sem, q_geo, cache, needs_lse=True)
    compare(case, got, cache, tensors, q_sem, q_geo, None)
    assert backend.writer is not None
