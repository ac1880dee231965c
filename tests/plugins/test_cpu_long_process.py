"""A process that makes caches of ever new sizes: memory and mapped code stay as they are, numbers right."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path

import pytest
import torch
from decode_cases import request
from tolerances import TOL

from dba_core.attention import decode
from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import NoOptions, Support
from dba_core.registry import Registry
from dba_plugins.decode.cpu.backend import CpuDecode
from dba_plugins.decode.cpu.spec import KernelSpec
from dba_plugins.decode.streaming import StreamingDecode, StreamingOptions
from dba_plugins.native import compiler

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

POLICY = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=4")
CONFIG = AttentionConfig(d_model=32, n_heads=4, n_kv_heads=2, sem_head_dim=4, geo_head_dim=8, v_head_dim=8)


def layers(count: int, backend: object = "cpu", registry: Registry | None = None) -> list[DecoupledAttention]:
    """Layers of the same weights."""
    made = [
        DecoupledAttention(CONFIG, decode_backend=backend, layer=number, registry=registry).eval()
        for number in range(count)
    ]
    for layer in made[1:]:
        layer.load_state_dict(made[0].state_dict())
    return made


def decoded(layer: DecoupledAttention, x: torch.Tensor, capacity: int) -> torch.Tensor:
    """The last token of x [B,T,d_model], prefilled but for two tokens."""
    cache = layer.new_cache(batch=len(x), capacity=capacity, policy=POLICY)
    parts = x.split([x.shape[1] - 2, 1, 1], dim=1) if x.shape[1] > 2 else x.split(1, dim=1)
    return [layer(part, cache=cache) for part in parts][-1]


def mapped() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    """Bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory is looked up in /proc")
def test_a_thousand_capacities_take_the_memory_of_one() -> None:
    """Before, each took five mappings and a tenth of a megabyte per layer, until LLVM ended the process."""
    one, other = layers(2)
    (streaming,) = layers(1, "streaming")
    streaming.load_state_dict(one.state_dict())
    x = torch.randn(3, 9, 32)

    def serve(capacities: range) -> None:
        for capacity in capacities:
            rows = x[: 1 + capacity % 3, :1]
            out = decoded(other if capacity % 10 == 0 else one, rows, capacity)
            if capacity % 100 == 0:
                rows = x[: 1 + capacity % 3, : min(capacity, 9)]
                expected = decoded(streaming, rows, capacity)
                torch.testing.assert_close(decoded(one, rows, capacity), expected, **TOL["float32"])
            assert out.shape == (1 + capacity % 3, 1, 32)

    serve(range(1, 121))
    maps, bytes_before = mapped(), resident()
    serve(range(121, 1121))
    assert mapped() - maps <= 16
    assert resident() - bytes_before < 8 * 2**20


def test_layers_batches_and_capacities_share_the_loaded_code() -> None:
    def backend(layer: DecoupledAttention, batch: int, capacity: int) -> CpuDecode:
        cache = layer.new_cache(batch=batch, capacity=capacity, policy=POLICY)
        return layer.decode_backend(cache)

    one, other = layers(2)
    found = [backend(*case) for case in itertools.product((one, other), (1, 5), (7, 300))]
    assert len({id(each._code) for each in found}) == 1
    assert len({id(each.writer._code) for each in found}) == 1


def test_code_that_nobody_uses_goes_when_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "KEPT", 2)
    monkeypatch.setattr(compiler, "_newest", type(compiler._newest)())
    specs = [KernelSpec.of(request((2, 2, 2, 2, 2, 2, width))) for width in (41, 42, 43)]
    used = CpuDecode(specs[0])
    gone = weakref.ref(CpuDecode(specs[1])._code)
    assert gone() is not None
    CpuDecode(specs[2])
    assert CpuDecode(specs[0])._code is used._code, "in use, so loaded once"
    CpuDecode(specs[2])
    gc.collect()
    assert gone() is None
    assert len(compiler._newest) == 2


class CountingPlugin:
    """The streaming backend, built for one request."""

    name = "counting"
    contract = 1
    summary = "counts"
    options_class = NoOptions

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.built: list[weakref.ref[StreamingDecode]] = []

    def supports(self, request, options) -> Support:
        self.asked.append((request.batch, request.capacity))
        return Support.yes()

    def build(self, request, options) -> StreamingDecode:
        made = StreamingDecode(StreamingOptions())
        self.built.append(weakref.ref(made))
        return made


def test_every_request_is_asked_and_kept_while_a_cache_needs_it() -> None:
    plugin, registry = CountingPlugin(), Registry()
    registry.register("decode_backend", plugin)
    (layer,) = layers(1, "counting", registry)
    x = torch.randn(1, 1, 32)
    kept = [layer.new_cache(batch=1, capacity=capacity, policy=POLICY) for capacity in range(1, 41)]
    for cache in kept:
        layer(x, cache=cache)
    assert plugin.asked == [(1, capacity) for capacity in range(1, 41)], "once each, and not per token"
    layer.new_cache(batch=1, capacity=40, policy=POLICY)
    layer.new_cache(batch=2, capacity=40, policy=POLICY)
    assert plugin.asked[40:] == [(2, 40)]
    assert all(built() is not None for built in plugin.built)
    del kept, cache
    gc.collect()
    alive = sum(built() is not None for built in plugin.built)
    assert alive == decode.KEPT
    assert len(layer._backends._served) == 0
