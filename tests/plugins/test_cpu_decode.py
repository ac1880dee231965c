"""What only the compiled CPU backend does: formats and widths by the hundred, threads, fork, refusals.

That its numbers are right in the common cases: test_decode_contract.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
import torch
from decode_cases import expected, filled, queries, random_null, request
from tolerances import TOL

from dba_core.attention.decode import decode_request
from dba_core.contracts import CachedTensor
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry
from dba_plugins.decode.cpu.backend import CpuDecode
from dba_plugins.decode.cpu.kernel import build_module
from dba_plugins.decode.cpu.spec import KernelSpec, TensorSpec, head_layout
from dba_plugins.native import compiler, threads

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

FORMATS = ("fp32", "fp16", "bf16", "q8_0@8", "q8_0@32", "q4_0@16", "q4_0@32", "q4_0@64", "nf4@32", "nf4@8")
WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48, 63, 64, 65, 100, 128)
PLAIN = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
SIZES = (4, 2, 2, 2, 32, 64, 64)


def backend_for(cache, sizes, *, has_null: bool = False) -> CpuDecode:
    asked = decode_request(request(sizes).shape, cache, has_null=has_null, dtype=torch.float32)
    return Registry.default().select("decode_backend", "cpu", asked).build()


def check(policy: str, sizes, lengths, *, with_null: bool = True) -> None:
    cache, tensors = filled(sizes, policy, lengths, total=max(lengths))
    scale = max(1, sizes[4] + sizes[5]) ** 0.5
    q_sem, q_geo = (q / scale for q in queries(sizes, len(lengths)))
    null = random_null(sizes) if with_null else None
    out, lse = expected(q_sem, q_geo, cache, tensors, null)
    got = backend_for(cache, sizes, has_null=with_null).decode(q_sem, q_geo, cache, null=null, needs_lse=True)
    torch.testing.assert_close(got.out.double(), out, **TOL["float32"])
    torch.testing.assert_close(got.lse.double(), lse, **TOL["float32"])


@pytest.mark.parametrize("stored", FORMATS)
def test_every_format_in_every_place(stored: str) -> None:
    for place in range(3):
        formats = ["fp16", "q8_0@32", "bf16"]
        formats[place] = stored
        policy = ",".join(f"{name}={fmt}" for name, fmt in zip(("ksem", "kgeo", "v"), formats, strict=True))
        check(f"{policy},resid={place * 5}", (4, 2, 2, 2, 20, 12, 18), (70, 9))


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("stored", FORMATS)
def test_every_width_in_every_format(stored: str, width: int) -> None:
    geo = width + width % 2
    for heads, resid in ((1, 0), (3, 11)):
        sizes = (2 * heads, heads, heads, heads, width, geo, width)
        check(f"ksem={stored},kgeo={stored},v={stored},resid={resid}", sizes, (67, 8, 0), with_null=resid > 0)


@pytest.mark.parametrize("share", [1, 2, 3, 4, 5, 8, 12])
def test_any_number_of_query_heads_shares_a_kv_head(share: int) -> None:
    check(PLAIN, (2 * share, 2, 2, 2, 32, 64, 40), (130, 63))


@pytest.mark.parametrize("heads", [(1, 4, 2), (2, 3, 1), (6, 4, 12), (4, 1, 1)])
def test_tensors_with_numbers_of_heads_of_their_own(heads: tuple[int, int, int]) -> None:
    check(f"{PLAIN},resid=9", (12, *heads, 24, 16, 20), (75, 20))


def test_layouts_that_blocks_straddle_look_up_every_scale() -> None:
    def by_lane(width: int, qblock: int, format: str = "q8_0") -> bool:
        return head_layout(TensorSpec(heads=3, width=width, format=format, qblock=qblock)).by_lane

    assert not by_lane(64, 32)
    assert not by_lane(32, 64)
    assert not by_lane(48, 32), "stretches of 16"
    assert by_lane(20, 8)
    assert by_lane(63, 32)
    assert not by_lane(63, 0, "fp16")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    torch.manual_seed(1)
    cache, _ = filled(SIZES, PLAIN, (3000, 17), total=3000)
    q_sem, q_geo = queries(SIZES)
    backend = backend_for(cache, SIZES)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = backend.decode(q_sem, q_geo, cache, needs_lse=True)
        torch.set_num_threads(count)
        many = backend.decode(q_sem, q_geo, cache, needs_lse=True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(many.out, one.out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(many.lse, one.lse, rtol=1e-6, atol=1e-6)


def test_calls_at_the_same_time_do_not_meet() -> None:
    made = []
    for seed in range(4):
        torch.manual_seed(seed)
        cache, tensors = filled(SIZES, PLAIN, (900, 300), total=900)
        q = queries(SIZES)
        made.append((cache, q, expected(*q, cache, tensors, None)[0]))
    backend = backend_for(made[0][0], SIZES)

    def run(number: int) -> float:
        cache, q, out = made[number % 4]
        return float((backend.decode(*q, cache).out - out).abs().max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, range(64))) < 1e-5


def test_a_pool_of_threads_where_torch_has_another_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_gnu_openmp", lambda: None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        check(PLAIN, SIZES, (2000, 100))
    finally:
        torch.set_num_threads(before)
    assert any(thread.name.startswith("dba-decode") for thread in threading.enumerate())


FORKED = """
import os, sys, torch
torch.set_num_threads(2)
sys.path.insert(0, {tests!r})
from test_cpu_decode import PLAIN, SIZES, check
check(PLAIN, SIZES, (2000, 100))
child = os.fork()
if not child:
    torch.set_num_threads(1)  # torch's own operators do not run on several threads after a fork
    torch.get_num_threads = lambda: 2
    check(PLAIN, SIZES, (2000, 100))
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
check(PLAIN, SIZES, (2000, 100))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_decodes_on_threads_of_its_own() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED.format(tests=str(here))],
        env={**os.environ, "PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupt_waits_for_the_threads() -> None:
    """Ctrl-C during a call arrives after it: the memory that the threads write is not freed under them."""
    seen = []

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    def entry(arguments: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(arguments)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads._on_pool(entry, 5, 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) >= 2, "the other threads have finished"


def test_nothing_is_computed_in_the_default_pieces_of_libm() -> None:
    """Vector code stays vector code: no call per value, and no half-precision helper of the C library."""
    spec = KernelSpec.of(
        attrs.evolve(
            request(SIZES),
            k_sem=CachedTensor(n_heads=2, head_dim=32, format="q4_0", qblock=32),
            k_geo=CachedTensor(n_heads=2, head_dim=64, format="q8_0", qblock=32),
            residual_len=8,
        )
    )
    module = build_module(spec, has_permute=compiler.machine().has_permute)
    calls = [line for line in compiler.assembly(module).splitlines() if "\tcall" in line or "\tbl\t" in line]
    called = {line.split()[1].strip("*").partition("@")[0] for line in calls}
    assert called <= {"tile_stored", "tile_recent", "logf", "memset"}, called


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"device": "cuda:0"}, "device"),
        ({"dtype": "bfloat16"}, "dtype of the queries"),
        ({"v": CachedTensor(n_heads=2, head_dim=257, format="fp16")}, "width of v"),
        ({"k_geo": CachedTensor(n_heads=3, head_dim=64, format="fp16")}, "heads of k_geo"),
        ({"k_sem": CachedTensor(n_heads=2, head_dim=32, format="q2_k", qblock=32)}, "format of k_sem"),
    ],
)
def test_what_it_refuses_and_why(change: dict[str, object], subject: str) -> None:
    asked = attrs.evolve(request(SIZES), **change)
    with pytest.raises(UnsupportedError) as caught:
        Registry.default().select("decode_backend", "cpu", asked)
    assert [reason.subject for reason in caught.value.reasons] == [subject]
    (reason,) = caught.value.reasons
    assert all((reason.got, reason.supported, reason.action))


def test_without_llvmlite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from dba_plugins.decode.cpu import plugin

    monkeypatch.setattr(plugin, "_has_llvmlite", lambda: False)
    with pytest.raises(UnsupportedError, match=r"python -m pip install .*\[cpu\]"):
        Registry.default().select("decode_backend", "cpu", request(SIZES))
    chosen = Registry.default().select("decode_backend", "auto", request(SIZES))
    assert chosen.name == "streaming"
    assert [passed.name for passed in chosen.passed_over] == ["cpu"]
