"""The Triton decode backends on an NVIDIA GPU, against float64. Run by `pytest -m cuda`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from triton_decode_cases import (
    GROUPED,
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

from dba_core.cache.layer import LayerCache
from dba_core.contracts import NullKV
from dba_core.registry import Registry

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


FORMATS = ("fp16", "bf16", "q8_0", "q4_0", "nf4")
POLICIES = (
    STUDIED,
    f"{STUDIED},resid=40",
    "ksem=nf4,kgeo=fp16,v=nf4,resid=300",
    "ksem=fp16,kgeo=fp16,v=fp16",
    "ksem=bf16,kgeo=bf16,v=bf16",
    "ksem=q8_0@16,kgeo=q4_0@64,v=q8_0@16",
    "ksem=q4_0@8,kgeo=q8_0@8,v=nf4@8,resid=4",
    *(
        f"ksem={a},kgeo={b},v={c}"
        for a, b, c in zip(FORMATS, FORMATS[1:] + FORMATS, FORMATS[3:] + FORMATS, strict=False)
    ),
)
LENGTHS = ((0, 0), (1, 31), (32, 33), (1000, 17), (4096, 4095))


def on_gpu(cache: LayerCache, tensors) -> LayerCache:
    """The same tokens in a cache on the GPU; past the lengths it holds NaN."""
    twin = LayerCache(
        registry=Registry.default(),
        **{name: (store.n_heads, store.head_dim) for name, store in named(cache)},
        batch=cache.batch,
        capacity=cache.capacity,
        policy=cache.policy,
        rollback=cache.rollback,
        device="cuda",
    )
    for (_, one), (_, other) in zip(named(cache), named(twin), strict=True):
        for plane in ("codes", "scales", "recent_ring"):
            if getattr(one, plane) is not None:
                getattr(other, plane).copy_(getattr(one, plane))
    lengths = cache.lengths
    twin._rows._grow(lengths)
    twin.lengths_device.copy_(cache.lengths_device)
    return twin


def named(cache: LayerCache):
    return (("k_sem", cache.k_sem), ("k_geo", cache.k_geo), ("v", cache.v))


def moved(null: NullKV | None) -> NullKV | None:
    return None if null is None else NullKV(k_sem=null.k_sem.cuda(), k_geo=null.k_geo.cuda(), v=null.v.cuda())


def check(case: Case) -> None:
    cache, tensors, q_sem, q_geo, null = prepared(case)
    twin = on_gpu(cache, tensors)
    got = built(case, cache).decode(q_sem.cuda(), q_geo.cuda(), twin, null=moved(null), needs_lse=True)
    got = attrs.evolve(got, out=got.out.cpu(), lse=got.lse.cpu())
    compare(case, got, cache, tensors, q_sem, q_geo, null)


@pytest.mark.parametrize("null", [False, True], ids=["", "null"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_float64(
    policy: str, lengths, passes: int, null: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch)
    check(Case(policy=policy, lengths=lengths, passes=passes, null=null))


@pytest.mark.parametrize("sizes", [GROUPED, SINGLE, MANY, SHARED, ODD, NARROW, WIDE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("passes", [1, 2])
def test_every_size_and_dtype(sizes, dtype, passes: int) -> None:
    lengths = (300,) if sizes == WIDE else (300, 33)
    check(
        Case(
            sizes=sizes, dtype=dtype, passes=passes, lengths=lengths, null=True, policy=f"{STUDIED},resid=20"
        )
    )


@pytest.mark.parametrize("options", [{"tokens_per_launch": 1024}, {"block": 64}, {"warps": 4}], ids=str)
def test_options_of_one_pass(options) -> None:
    check(Case(passes=1, options=options, lengths=(4000, 100), null=True))


@pytest.mark.parametrize("options", [{"splits": 1}, {"splits": 500}, {"block": 64, "warps": 2}], ids=str)
def test_options_of_two_passes(options) -> None:
    check(Case(options=options, lengths=(4000, 100), null=True))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("null", [False, True], ids=["", "null"])
def test_a_graph_of_append_and_decode_follows_the_lengths(passes: int, null: bool) -> None:
    """One captured step is replayed while the cache grows, through the residual window and block borders."""
    case = Case(passes=passes, policy=f"{STUDIED},resid=9", lengths=(60, 60), null=null, dtype=torch.float16)
    cache, tensors, q_sem, q_geo, null_kv = prepared(case)
    x = [each.half().cuda() for each in tensors]
    q_sem, q_geo, null_kv = q_sem.cuda(), q_geo.cuda(), moved(null_kv)
    graphed, plain = (on_gpu(cache, tensors) for _ in range(2))
    backend = built(case, cache)
    for each in (graphed, plain):
        each.reset()
        each.append(*(t[:, :, :1] for t in x), writer=backend.writer)
        backend.decode(q_sem, q_geo, each, null=null_kv)  # compiles
    slot = [t[:, :, 1:2].clone() for t in x]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.append(*slot, writer=backend.writer)
        out = backend.decode(q_sem, q_geo, graphed, null=null_kv).out
    for t in range(1, 60):
        for held, new in zip(slot, x, strict=True):
            held.copy_(new[:, :, t : t + 1])
        graph.replay()
        plain.append(*(each[:, :, t : t + 1] for each in x), writer=backend.writer)
        assert torch.equal(out, backend.decode(q_sem, q_geo, plain, null=null_kv).out), t
    graphed.sync()
    assert graphed.lengths == plain.lengths == (60, 60)


def test_a_step_does_not_wait_for_the_device() -> None:
    case = Case(lengths=(500, 400), null=True, policy=f"{STUDIED},resid=9")
    cache, tensors, q_sem, q_geo, null = prepared(case)
    twin, backend = on_gpu(cache, tensors), built(case, cache)
    x = [each[:, :, :1].half().cuda() for each in tensors]
    q_sem, q_geo, null = q_sem.cuda(), q_geo.cuda(), moved(null)
    twin.append(*x, writer=backend.writer)
    backend.decode(q_sem, q_geo, twin, null=null)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        twin.append(*x, writer=backend.writer)
        backend.decode(q_sem, q_geo, twin, null=null, needs_lse=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
def test_compute_sanitizer_finds_nothing() -> None:
    here = Path(__file__)
    done = subprocess.run(
        [
            *("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)),
            *("-m", "cuda", "-k", "test_every_size_and_dtype and float16 and not sanitizer"),
        ],
        cwd=here.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
