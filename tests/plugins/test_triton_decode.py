"""The Triton decode backends without a GPU: values by the interpreter, machine code compiled offline."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch
from decode_cases import request
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from dba_core.contracts import CachedTensor, NullKV
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice
from dba_plugins.bench.kernels import kernel_row
from dba_plugins.bench.sass import read_machine_code
from dba_plugins.decode.triton import backend, kernel
from dba_plugins.decode.triton.attend import NullParts
from dba_plugins.decode.triton.backend import count_splits
from dba_plugins.decode.triton.limits import TwoPassOptions
from dba_plugins.decode.triton.offline import Case, compile_case, compile_kernel, compiled_kernels

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
]


HERE = Path(__file__).parent
LIMITED = (
    Case(),
    Case(widths=(32, 64, 128)),
    Case(share=1),
    Case(share=1, widths=(32, 64, 128)),
    Case(window=True, null=True),
    Case(window=True, null=True, widths=(32, 64, 128)),
)
OTHERS = (
    Case(formats=("q8_0", "q8_0", "q8_0")),
    Case(formats=("nf4", "nf4", "nf4")),
    Case(formats=("fp16", "fp16", "fp16")),
    Case(formats=("bf16", "bf16", "bf16"), query="bfloat16"),
    Case(qblock=16),
    Case(qblock=64),
    Case(share=16),
    Case(query="float32"),
)


def interpreted(marks: str) -> None:
    """The interpreter must be on when triton is imported, so a process of its own runs the cases."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-m", marks, "triton_decode_interpreted.py"),
        ],
        cwd=HERE,
        env=environment | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_interpreted_kernels_equal_float64() -> None:
    interpreted("not slow")


@pytest.mark.slow
def test_the_interpreted_kernels_equal_float64_for_every_pair_of_formats() -> None:
    interpreted("slow")


@pytest.mark.parametrize("split", [True, False], ids=["2pass", "1pass"])
@pytest.mark.parametrize("case", LIMITED, ids=lambda case: case.name)
def test_machine_code_keeps_the_limits_on_sm_90(case: Case, split: bool) -> None:
    (found,) = compiled_kernels(split=split, capabilities=(90,), cases=(case,))
    row = kernel_row(found)
    assert found.most_registers is not None
    assert row["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 100])
@pytest.mark.parametrize("split", [True, False], ids=["2pass", "1pass"])
@pytest.mark.parametrize("case", LIMITED, ids=lambda case: case.name)
def test_machine_code_keeps_the_limits_elsewhere(case: Case, split: bool, capability: int) -> None:
    (found,) = compiled_kernels(split=split, capabilities=(capability,), cases=(case,))
    assert kernel_row(found)["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_other_formats_do_not_spill_and_read_whole_words(case: Case) -> None:
    (found,) = compiled_kernels(split=False, capabilities=(90,), cases=(case,))
    row = kernel_row(found)
    assert row["failures"] == []  # tensor-core instructions
    assert row["spills"] == 0
    assert "1" not in row["loads_by_bytes"]
    assert row["loads_by_bytes"].get("2", 0) <= found.scale_loads


class WithoutNull(ast.NodeTransformer):
    """Deletes what HAS_NULL guards."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        self.generic_visit(node)
        return None if isinstance(node.test, ast.Name) and node.test.id == "HAS_NULL" else node


def test_without_null_the_code_is_that_of_a_kernel_without_null_code(tmp_path: Path) -> None:
    tree = WithoutNull().visit(ast.parse(Path(kernel.__file__).read_text(encoding="utf-8")))
    file = tmp_path / "kernel_without_null.py"
    file.write_text(ast.unparse(tree), encoding="utf-8")
    assert "if HAS_NULL" not in file.read_text()
    spec = importlib.util.spec_from_file_location("kernel_without_null", file)
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    with_code, without = (
        compile_case(Case(), split=False, kernel=each) for each in (kernel.attend_kernel, other.attend_kernel)
    )
    one, two = (read_machine_code(each.sass, each.usage) for each in (with_code, without))
    assert one.instructions == two.instructions
    assert one.registers == two.registers
    with_null = compile_case(attrs.evolve(Case(), null=True), split=False)
    assert read_machine_code(with_null.sass, with_null.usage).instructions != one.instructions


def test_one_compilation_serves_every_length_capacity_and_number_of_splits() -> None:
    """Triton compiles anew for a 1 and for a multiple of 16, unless it is told not to."""
    target = make_backend(GPUTarget("cuda", 90, 32))
    attend = kernel.attend_kernel
    bind = create_function_from_signature(attend.signature, attend.params, target)
    constants = {"LAYOUT": Case().spec.layout(block=32), "NULL_HEADS": NullParts(k_sem=8, k_geo=8, v=8)}
    constants |= dict.fromkeys(("HAS_NULL", "HAS_LSE"), False) | {"SPLIT": True}
    planes = [torch.zeros(64)] * 3
    keys = set()
    for size in (1, 16, 17, 131072, 2**30):
        given = {name: torch.zeros(64) for name in attend.arg_names if name.endswith("_ptr")}
        given |= dict.fromkeys(("k_sem", "k_geo", "v"), kernel.Planes(*planes)) | {"null": NullParts(*planes)}
        given |= dict.fromkeys(kernel.RUNTIME, size) | constants
        _, specialization, _ = bind(**given)
        keys.add(str(specialization))
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("width", "batch", "splits"),
    [(64, 1, 132 * 15 // 8), (128, 1, 132 * 12 // 8), (64, 8, 132 * 15 // 64), (64, 1000, 2)],
)
def test_the_splits_are_as_many_as_the_registers_hold_at_once(width: int, batch: int, splits: int) -> None:
    spec = Case(widths=(32, 64, width)).spec
    given = {"batch": batch, "capacity": 131072, "processors": 132}
    assert count_splits(spec, TwoPassOptions(), **given) == splits
    assert count_splits(spec, TwoPassOptions(splits=5), **given) == 6
    few = given | {"capacity": 256}
    assert count_splits(spec, TwoPassOptions(), **few) == min(splits, 256 // 32 // 4 + 1)


def test_with_several_splits_the_null_token_changes_no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, int, int]):
            return lambda *given, **named: launches.append((given, named))

    monkeypatch.setattr(backend, "attend_kernel", Recorded())
    spec, options = Case().spec, TwoPassOptions()
    store = SimpleNamespace(codes=torch.zeros(1), scales=None, recent_ring=None)
    names = ("k_sem", "k_geo", "v")
    cache = SimpleNamespace(
        batch=1, capacity=64, ring_size=0, residual_len=0, lengths_device=None, **dict.fromkeys(names, store)
    )
    null = NullKV(**{name: torch.zeros(8, 4) for name in names})
    output = SimpleNamespace(out=torch.zeros(1, dtype=torch.float16), lse=None)
    for each in (None, null):
        q = torch.zeros(1, dtype=torch.float16)
        step = backend.Step(q_sem=q, q_geo=q, cache=cache, null=each, needs_lse=False)
        backend.attend(spec, options, step, output, torch.zeros(1), splits=2, begin=0, end=64)
    (one, named), (two, named_two) = launches
    assert named == named_two
    assert [part.dtype for part in one[6]] == [part.dtype for part in two[6]] == [torch.float32] * 3


def test_the_merge_does_not_spill() -> None:
    types = {
        "state_ptr": "*fp32",
        "lse_ptr": "*fp32",
        "null": NullParts("*fp32", "*fp32", "*fp32"),
        "splits": "i32",
    }
    types |= dict.fromkeys(("q_sem_ptr", "q_geo_ptr", "out_ptr"), "*fp16")
    constants = {
        "LAYOUT": Case(widths=(32, 64, 128)).spec.layout(block=0),
        "NULL_HEADS": NullParts(8, 8, 8),
        "BLOCK": backend.MERGE_SPLITS,
        "HAS_NULL": True,
        "HAS_LSE": True,
    }
    listing = compile_kernel(kernel.merge_kernel, types, constants, num_warps=backend.MERGE_WARPS)
    code = read_machine_code(listing.sass, listing.usage)
    assert code.spills == 0


def on_cuda(**changes: object):
    given = {"device": "cuda:0", "device_capability": (9, 0), "multiprocessors": 132, **changes}
    asked = request((8, 2, 2, 2, 32, 64, 64), dtype="float16", batch=1, capacity=131072)
    return attrs.evolve(asked, **given)


def selected(asked, name: str = "auto"):
    return Registry.default().select("decode_backend", PluginChoice(name), asked)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "triton_2pass"),
        ({"batch": 1024}, "triton_1pass"),
        ({"capacity": 512}, "triton_1pass"),
        ({"dtype": "float64"}, "streaming"),
    ],
)
def test_auto_chooses_by_batch_heads_length_and_multiprocessors(changes, name: str) -> None:
    selection = selected(on_cuda(**changes))
    assert selection.name == name
    if not changes:
        (stood_back,) = selection.passed_over
        assert stood_back.name == "triton_1pass"
        assert "2 (batch 1, 2 per row) for 132 multiprocessors" in str(stood_back)
        assert not selection.fallbacks


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "cpu", "device_capability": None}, "device: got cpu; supported: cuda"),
        ({"device_capability": (7, 5)}, "compute capability: got 7.5; supported: 8.0 or later"),
        ({"dtype": "float64"}, "dtype of the queries: got float64"),
        (
            {"v": CachedTensor(n_heads=2, head_dim=512, format="fp16")},
            "width of v: got 512; supported: 1 to 256",
        ),
        ({"k_geo": CachedTensor(n_heads=2, head_dim=64, format="fp8")}, "format of k_geo: got fp8"),
        ({"v": CachedTensor(n_heads=3, head_dim=64, format="fp16")}, "heads of v: got 3 for 8 query heads"),
    ],
)
@pytest.mark.parametrize("name", ["triton_1pass", "triton_2pass"])
def test_a_named_backend_runs_or_says_why_not(name: str, changes, text: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        selected(on_cuda(**changes), name)
    assert any(text in str(reason) for reason in error.value.reasons)
