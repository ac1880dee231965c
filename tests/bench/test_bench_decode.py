"""`dba bench decode` on tiny shapes: bytes, errors and ratios by arithmetic, not by the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dba_cli.main import main
from dba_core.cache.bytes import bytes_per_token
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.errors import UnsupportedError
from dba_core.report import Column, Report, SilentReporter, Table, machine_line
from dba_plugins.bench import decode_data
from dba_plugins.bench.baselines import baselines
from dba_plugins.bench.decode import DecodeBench, measure_decode
from dba_plugins.bench.machine import describe_machine

pytestmark = pytest.mark.torch

SHAPE = AttentionShape(d_model=48, n_heads=4, n_kv_heads=2, sem_head_dim=8, geo_head_dim=16, v_head_dim=12)
POLICY = KVCachePolicy.parse("ksem=q4_0@8,kgeo=q8_0@16,v=fp16,resid=5")


@pytest.fixture(autouse=True)
def _few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_data, "_MOST_COPIES", 2)
    monkeypatch.setattr("dba_plugins.bench.bandwidth._LEAST", 1 << 16)
    monkeypatch.setattr("dba_plugins.bench.bandwidth.last_cache_bytes", lambda: None)


def measured(**more: object) -> Report:
    shape = {"heads": 4, "kv_heads": (2,), "sem_dim": 8, "geo_dim": 16, "v_dim": (12,)}
    settings = {"batch": (1, 2), "length": (7, 40), "repeats": 2, "flex": False, "kv_policy": POLICY.short}
    return measure_decode(DecodeBench(**{**shape, **settings, **more}), SilentReporter())


def test_every_row_says_what_it_read_and_how_far_it_is_off() -> None:
    report = measured(null="both")
    names = {row["name"] for row in report.rows}
    assert {"streaming", "sdpa fp32", "sdpa fp32, V padded", "matmul fp32", "sdpa bf16"} <= names
    assert len(report.rows) == 2 * 2 * 2 * len(names)
    for row in report.rows:
        batch, length, null = row["batch"], row["length"], row["null"] == "yes"
        if row["kind"] == "backend":
            assert row["bytes"] == batch * length * bytes_per_token(SHAPE, POLICY)
        elif row["name"] == "sdpa fp32":
            assert row["bytes"] == batch * (length + null) * 2 * (24 + 12) * 4
        assert row["max_error"] < (2e-2 if "bf16" in row["name"] else 1e-5), row["name"]
        assert row["roofline_multiple"] == pytest.approx(row["ms"] / row["roofline_ms"])
        assert row["roofline_ms"] == pytest.approx(row["bytes"] / row["bandwidth"] * 1e3)


def test_ratios_are_those_of_the_medians_of_one_case() -> None:
    rows = measured(batch=(1,), length=(40,)).rows
    by_name = {row["name"]: row for row in rows}
    plain = [by_name[name]["ms"] for name in ("sdpa fp32", "sdpa fp32, V padded")]
    for row in rows:
        assert row["against_sdpa"] == pytest.approx(min(plain) / row["ms"])
        assert row["against_fastest"] == pytest.approx(min(*plain, by_name["matmul fp32"]["ms"]) / row["ms"])
        assert row["against_flex"] is None
    assert by_name["sdpa bf16"]["against_streaming"] == pytest.approx(
        by_name["streaming"]["ms"] / by_name["sdpa bf16"]["ms"]
    )


def test_a_backend_that_cannot_is_noted_and_one_that_was_named_is_an_error() -> None:
    wide = {"heads": 1, "sem_dim": 300, "geo_dim": 4, "v_dim": (4,)}
    settings = DecodeBench(**wide, batch=(1,), length=(3,), repeats=2, flex=False)
    report = measure_decode(settings, SilentReporter())
    assert "cpu" not in {row["name"] for row in report.rows}
    assert any("width of k_sem" in note for note in report.notes)
    named = DecodeBench(**wide, batch=(1,), length=(3,), repeats=2, flex=False, backend=("cpu",))
    with pytest.raises(UnsupportedError, match="width of k_sem"):
        measure_decode(named, SilentReporter())


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    rows = measured(batch=(1,), length=(7,), threads=(2, 1)).rows
    assert sorted({row["threads"] for row in rows}) == [1, 2]
    assert torch.get_num_threads() == before


def test_copies_outgrow_the_cache_and_spare_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_data, "_MOST_COPIES", 32)
    monkeypatch.setattr(decode_data, "last_cache_bytes", lambda: 100)
    monkeypatch.setattr(decode_data, "memory_bytes", lambda: 4000)
    assert [decode_data.copies(size) for size in (1, 30, 100, 600, 5000)] == [32, 10, 3, 1, 1]


def test_without_a_compiler_flex_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found, notes = baselines(torch.device("cpu"), flex=True)
    assert "flex fp32" not in {each.name for each in found}
    assert "C++ compiler" in notes[0]


def test_the_report_as_a_page(tmp_path: Path) -> None:
    machine = describe_machine("cpu")
    rows = ({"a": 1.25, "b": None, "c": 3}, {"a": 2.0, "b": "p|q"})
    report = Report(
        name="x",
        title="A title",
        command="dba bench x",
        tables=(Table(columns=(Column("a", "A", "{:.1f}"), Column("b", "B")), rows=rows),),
        figures={"rows": rows},
        machine=machine,
        notes=("said",),
    )
    page = report.markdown(["x.png"])
    assert page.startswith("# A title\n\n```sh\ndba bench x\n```\n\n![A title](x.png)\n\n| A | B |\n")
    assert "| --- | --- |\n| 1.2 |  |\n| 2.0 | p\\|q |\n" in page
    assert page.endswith(f"- said\n\nMeasured on {machine_line(machine)}.\n")
    assert report.to_dict()["rows"][0] == {"a": 1.25, "b": None, "c": 3}
    assert machine["versions"]["torch"] == torch.__version__


def test_the_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--heads", "2", "--sem-dim", "8", "--geo-dim", "8", "--v-dim", "8", "--batch", "1"]
    shape += ["--length", "9", "--repeats", "2", "--no-flex"]
    assert main(["bench", "decode", *shape, "--json", "--plot", "--save", str(tmp_path / "out")]) == 0
    done = capsys.readouterr()
    document = json.loads(done.out)
    assert document["schema"] == 1
    assert {row["length"] for row in document["rows"]} == {9}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "decode.json",
        "decode.md",
        "decode.png",
    ]
    assert json.loads((tmp_path / "out" / "decode.json").read_text())["rows"] == document["rows"]
    assert "![" in (tmp_path / "out" / "decode.md").read_text()
    assert done.err.count("Wrote ") == 3


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["--length", "0"], 2, "no whole number >= 1"),
        (["--batch", "1,x"], 2, "no whole number >= 1"),
        (["--backend", "cpuu"], 4, "Did you mean 'cpu'"),
        (["--heads", "6", "--kv-heads", "4"], 2, "not a multiple of --kv-heads 4"),
        (["--repeats", "1"], 2, "--repeats"),
        (["--kv-policy", "ksem=q9"], 3, "q9"),
        (["--device", "cuda:99"], 3, "--device"),
    ],
)
def test_wrong_input_measures_nothing(
    capsys: pytest.CaptureFixture[str], args: list[str], code: int, hint: str
) -> None:
    assert main(["bench", "decode", "--no-flex", "--length", "5", "--batch", "1", *args]) == code
    done = capsys.readouterr()
    assert hint in done.err
    assert done.out == ""


def test_saving_into_a_file_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    assert main(["bench", "decode", "--save", str(tmp_path / "file")]) == 2
    assert "is a file; reports are saved in a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"
