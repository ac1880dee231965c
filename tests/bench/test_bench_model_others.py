"""Others in `dba bench model` compute the model that they are given, each from the cache that it is given."""

from __future__ import annotations

import ctypes
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_oracle import CONFIG, random_weights, write_folder

pytestmark = pytest.mark.torch

WIDE = {**CONFIG, "head_dim": 12, "max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("others") / "model", WIDE, random_weights(WIDE))


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}])
def test_transformers_own_llama_gives_the_sources_logits(scaling, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.model.llama import VARIANTS, llama_of, variant_of

    config = WIDE if scaling is None else {**WIDE, "rope_scaling": scaling}
    source = open_pretrained(write_folder(tmp_path / "model", config, random_weights(config)))
    tokens = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(5))
    llama = llama_of(source)
    with torch.no_grad():
        expected = source.build()(tokens)
        for variant in VARIANTS:
            made = variant_of(llama, variant)
            assert made.config._attn_implementation == variant.attention
            found = made(tokens).logits
            assert found.dtype == variant.dtype
            limit = 1e-5 if variant.dtype == torch.float32 else 0.05
            assert (found.float() - expected).abs().max() / expected.abs().max() < limit


@pytest.mark.parametrize("static", [True, False])
def test_the_llama_decodes_after_its_filled_cache_and_goes_back_to_it(place: Path, static: bool) -> None:
    pytest.importorskip("transformers")
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.model.contestants import FIRST
    from dba_plugins.bench.model.llama import LlamaGenerator, llama_of

    llama = llama_of(open_pretrained(place))
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


def test_names_go_back_and_forth() -> None:
    from dba_plugins.checkpoints.llama_names import from_huggingface, to_huggingface

    for name in random_weights(WIDE):
        ours = from_huggingface(name)
        assert ours is not None
        assert to_huggingface(ours) == name


@pytest.fixture
def llama_cpp(place: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package of that name whose `Llama` has what ours uses of llama-cpp-python 0.3, and computes the model
    at `place`.
    """
    from dba_core.model.pretrained import open_pretrained

    model = open_pretrained(place).build()
    package = types.ModuleType("llama_cpp")
    package.__spec__ = ModuleSpec("llama_cpp", None)

    class Llama:
        def __init__(self, *, model_path: str, n_ctx: int, logits_all: bool, **_: object) -> None:
            self.model, self.ctx, self.n_tokens, self.logits_all = self, self, 0, logits_all
            self.input_ids = np.zeros(n_ctx, dtype=np.intc)
            self.scores = np.zeros((n_ctx if logits_all else 1, 256), dtype=np.single)

        def reset(self) -> None:
            self.n_tokens = 0

        def eval(self, tokens: list[int]) -> None:
            end = self.n_tokens + len(tokens)
            self.input_ids[self.n_tokens : end] = tokens
            with torch.no_grad():
                logits = model(torch.from_numpy(self.input_ids[:end].astype(np.int64))[None])[0].numpy()
            self.last = np.ascontiguousarray(logits[-1])
            if self.logits_all:
                self.scores[self.n_tokens : end] = logits[self.n_tokens :]
            self.n_tokens = end

    package.__version__ = "0.3.99"  # type: ignore[attr-defined]
    package.Llama = Llama  # type: ignore[attr-defined]
    package.llama_model_size = lambda _model: 1234  # type: ignore[attr-defined]
    package.llama_print_system_info = lambda: b"CPU : AVX2 = 1 "  # type: ignore[attr-defined]
    package.llama_get_logits = lambda llama: llama.last.ctypes.data_as(  # type: ignore[attr-defined]
        ctypes.POINTER(ctypes.c_float)
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    return package


def test_llama_cpp_computes_the_file_from_the_prompt_on(place: Path, llama_cpp: types.ModuleType) -> None:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.generation.loop import GenerationConfig, generate
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.model.contestants import FIRST, Ours
    from dba_plugins.bench.model.llama_cpp import LlamaCpp

    source = open_pretrained(place)
    theirs = LlamaCpp(place, source.config, flash=True)
    ours = Ours("source", source.build(), KVCachePolicy.uniform("fp32"))
    assert theirs.name == "llama.cpp, fp16 cache, flash attention"
    assert theirs.weight_bytes == 1234
    assert theirs.cache_bytes(batch=1, length=7) == 7 * 2 * 2 * 2 * 12 * 2
    tokens = np.arange(90) * 7 % 256
    expected = ours.loss(tokens, context=32, limit=70)
    assert theirs.loss(tokens, context=32, limit=70) == pytest.approx(expected, abs=1e-5)
    assert theirs.left_out(phase="decode", batch=4, length=9) is not None
    made: list[types.ModuleType] = []
    opened = llama_cpp.Llama
    llama_cpp.Llama = lambda **settings: made.append(opened(**settings)) or made[-1]  # type: ignore[attr-defined]
    turn = theirs.decode([[5, 17, 2]], new_tokens=4)
    for round_ in range(2):
        turn.call(round_)
        assert made[0].n_tokens == 7
        config = GenerationConfig(max_new_tokens=3, temperature=0.0)
        new = generate(source.build(), [[5, 17, 2, FIRST]], config, kv_policy="ksem=fp32,kgeo=fp32,v=fp32")
        assert made[0].input_ids[:7].tolist() == [5, 17, 2, FIRST, *new[0]]
    theirs.prefill([[5, 17, 2]]).call(0)
    assert made[1].n_tokens == 3


def test_llama_cpp_alone_has_the_same_settings(place: Path, llama_cpp: types.ModuleType) -> None:
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.model import llama_cpp_alone
    from dba_plugins.bench.model.llama_cpp import LlamaCpp

    theirs = LlamaCpp(place, open_pretrained(place).config, flash=False)
    module, asked = theirs.alone(length=5, new_tokens=2)
    assert module == llama_cpp_alone.__name__
    seen: list[dict] = []
    opened = llama_cpp.Llama
    llama_cpp.Llama = lambda **settings: seen.append(settings) or opened(**settings)  # type: ignore[attr-defined]
    assert not llama_cpp_alone.STATUS.exists() or llama_cpp_alone.measure_alone(asked) > 2**25
    threads = torch.get_num_threads()
    assert all((each["n_ctx"], each["n_threads"], each["flash_attn"]) == (8, threads, False) for each in seen)


def test_the_libraries_are_named_with_their_instruction_sets() -> None:
    from dba_plugins.bench.libraries import libraries

    told = (
        "MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture Intel(R) "
        "Architecture processors, Lnx 2.45GHz lp64 gnu_thread\n"
        "onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80af)\nonednn_verbose,v1,info,cpu,isa:Intel AVX2\n"
        "  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80af)\n"
    )
    assert libraries(told) == [
        "oneMKL 2024.0 Update 2 for Intel(R) Architecture processors",
        "oneDNN 3.12.0 for Intel AVX2",
    ]
    assert libraries("BLAS_INFO=open, USE_MKL=OFF") == ["no MKL, BLAS open"]
