"""`dba bench model`: everyone computes the model that it says, and every row is of real calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core.errors import UsageError
from dba_core.report import SilentReporter

pytestmark = pytest.mark.torch

WIDE = {**CONFIG, "head_dim": 12, "max_position_embeddings": 8192}
OWN = "converted, ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
OURS = ["source, fp16 cache", "converted, fp16 cache", OWN]
LLAMAS = [
    "transformers, eager, static cache",
    "transformers, sdpa, static cache",
    "transformers, sdpa, dynamic cache",
    "transformers, bf16, static cache",
]
RUN_SETTINGS = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.context=16",
    "model.attention.n_heads=4",
    "training.steps=2",
    "training.batch_size=2",
    "evaluation.tokens=32",
    "evaluation.fidelity_tokens=0",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and what it was converted to."""
    place = tmp_path_factory.mktemp("converted")
    write_folder(place / "model", WIDE, random_weights(WIDE))
    (place / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    (place / "b.txt").write_text("".join(f"{n} bottles hanging on the wall\n" for n in range(300)))
    made = ["convert", str(place / "model"), "--out", str(place / "out"), "--pairs", "2"]
    texts = ["--calibrate", str(place / "a.txt"), "--eval", str(place / "b.txt"), "--no-comparators"]
    rest = ["--tokenizer", "bytes", "--context", "32", "--calibrate-tokens", "96", "--eval-tokens", "64"]
    assert main([*made, *texts, *rest]) == 0
    return place


@pytest.fixture(autouse=True)
def quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the libraries takes a process of its own, and has a test of its own."""
    from dba_plugins.bench import libraries

    monkeypatch.setattr(libraries, "torch_build", lambda: "torch of this machine")


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    few = ["--new-tokens", "3", "--repeats", "2", "--prefill-repeats", "2", "--no-resident", "--json"]
    assert main(["bench", "model", *map(str, words), *few]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_source_and_what_it_became_stand_beside_transformers(place: Path, capsys) -> None:
    pytest.importorskip("transformers")
    words = ("--contexts", "9,20", "--loss-tokens", 64)
    found = measured(capsys, place / "model", place / "out", *words)
    for phase in ("prefill", "decode"):
        for length in (9, 20):
            rows = {
                row["name"]: row for row in found["rows"] if (row["phase"], row["length"]) == (phase, length)
            }
            assert list(rows) == OURS + LLAMAS
            fastest = min((rows[name] for name in LLAMAS), key=lambda row: row["ms"])
            for row in rows.values():
                tokens = length if phase == "prefill" else 3
                assert row["tokens_per_second"] == pytest.approx(tokens / row["ms"] * 1e3)
                assert row["fastest_other"] == fastest["name"]
                assert row["against_fastest"] == pytest.approx(fastest["ms"] / row["ms"])
                assert row["low_ms"] <= row["ms"] <= row["high_ms"]
                assert row["kind"] == ("backend" if row["name"] in OURS else "baseline")
                assert bool(row["backend"]) == (row["name"] in OURS)
            sizes = {name: row["cache_bytes"] for name, row in rows.items()}
            values = 2 * 2 * 2 * 12 * length  # keys and values, 2 layers, 2 KV heads of 12
            assert sizes[OWN] < sizes[OURS[0]] == sizes[OURS[1]] == 2 * values
            assert sizes[LLAMAS[1]] == 4 * values == 2 * sizes[LLAMAS[3]]
            weights = {name: row["weight_bytes"] for name, row in rows.items()}
            assert weights[LLAMAS[0]] == weights[LLAMAS[2]]
            assert weights[LLAMAS[3]] < 0.6 * weights[LLAMAS[0]]
            loss = {name: row["loss"] for name, row in rows.items()}
            assert loss[LLAMAS[0]] == pytest.approx(loss[LLAMAS[2]], abs=1e-5)
            assert loss[OURS[0]] == pytest.approx(loss[LLAMAS[1]], abs=2e-3)  # its cache is fp16
            assert 0 < abs(loss[LLAMAS[3]] - loss[LLAMAS[1]]) < 0.02
            assert abs(loss[OWN] - loss[OURS[1]]) < 0.2
    assert any(note.startswith("llama.cpp was left out: it reads .gguf files") for note in found["notes"])
    assert found["notes"][-1] == "torch of this machine"


def test_a_run_stands_beside_itself_recomputing_and_a_plain_gpt(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} bottles hanging on the wall\n" for n in range(300)))
    monkeypatch.chdir(tmp_path)
    sets = [word for each in RUN_SETTINGS for word in ("--set", each)]
    assert main(["run", "--data", "text.txt", "--name", "small", "--quiet", *sets]) == 0
    capsys.readouterr()
    words = ("--contexts", "8,24", "--batch", 2, "--against", "recomputing,plain-gpt")
    found = measured(capsys, "latest", *words, "--kv-policy", "ksem=fp32,kgeo=fp32,v=fp32")
    others = ["run, recomputing its context", "plain GPT, recomputing its context"]
    for phase, length in (("prefill", 8), ("decode", 8), ("decode", 24)):
        rows = [row for row in found["rows"] if (row["phase"], row["length"]) == (phase, length)]
        assert [row["name"] for row in rows] == ["run, fp32 cache", *others]
        assert [bool(row["cache_bytes"]) for row in rows] == [True, False, False]
        assert [row["loss"] is None for row in rows] == [False, True, True]
        tokens = 2 * (length if phase == "prefill" else 3)
        for row in rows:
            assert row["tokens_per_second"] == pytest.approx(tokens / row["ms"] * 1e3)
    assert f"{others[0]}: no prefill of more than the 16 tokens of its context" in found["notes"]
    assert main(["bench", "model", "latest", "latest"]) == 2
    assert "a run is measured alone" in capsys.readouterr().err


def test_weights_are_held_in_each_format_that_was_asked_for(place: Path, capsys) -> None:
    words = ("--contexts", 9, "--against", "recomputing", "--weights", "fp32,int8", "--loss-tokens", 64)
    found = measured(
        capsys, place / "model", place / "out", *words, "--kv-policy", "ksem=fp32,kgeo=fp32,v=fp32"
    )
    rows = {row["name"]: row for row in found["rows"] if row["phase"] == "decode"}
    for who in ("source", "converted"):
        full, packed = (rows[f"{who}, {each} weights, fp32 cache"] for each in ("fp32", "int8"))
        assert packed["weight_bytes"] < full["weight_bytes"]
        assert 0 < abs(packed["loss"] - full["loss"]) < 0.05
    assert len(rows) == 4
    assert main(["bench", "model", str(place / "model"), "--weights", "int9"]) == 4
    assert "int9" in capsys.readouterr().err


def test_recomputing_gives_the_tokens_of_the_whole_sequence_in_its_context() -> None:
    from dba_plugins.bench.model.contestants import greedy

    def step(tokens: torch.Tensor) -> torch.Tensor:
        """The next token is how many were seen."""
        return torch.nn.functional.one_hot(torch.full((len(tokens),), tokens.shape[1]), 9)

    tokens = greedy(step, torch.tensor([[5, 6], [7, 8]]), new_tokens=3, context=3)
    assert tokens.tolist() == [[5, 6, 2, 3, 3], [7, 8, 2, 3, 3]]


@pytest.mark.parametrize("policy", ["ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=4", "ksem=fp32,kgeo=fp32,v=fp32"])
def test_a_filled_cache_has_its_length_in_every_layer_and_decoding_goes_back_to_it(
    place: Path, policy: str
) -> None:
    from dba_core.config.kv_policy import KVCachePolicy
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.model import contestants

    model = open_pretrained(place / "model").build()
    chosen = KVCachePolicy.parse(policy)
    cache = contestants.filled_cache(model, chosen, batch=2, length=4100, room=4)  # more than one append
    assert cache.lengths == (4100, 4100)
    assert len(cache.layers) == 2
    ours = contestants.Ours("source", model, chosen)
    turn = ours.decode([[1] * 9] * 2, new_tokens=4)
    turn.call(0)
    turn.call(1)  # the cache has room for one turn alone
    one, other = (ours.cache_bytes(batch=2, length=length) for length in (100, 200))
    from dba_core.cache.bytes import bytes_per_token

    assert other - one == 2 * 2 * 100 * bytes_per_token(model.attentions[0].shape, chosen)


def test_who_is_not_installed_is_left_out_with_a_reason(place: Path, tmp_path: Path, monkeypatch) -> None:
    from dba_plugins.bench.model import llama, llama_cpp
    from dba_plugins.bench.model.entrants import entrants
    from dba_plugins.bench.model.request import ModelBench

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "python -m pip install" in str(llama.why_left_out())
    file = tmp_path / "model.gguf"
    file.touch()
    assert "llama-cpp-python is not installed" in str(llama_cpp.why_left_out(file))
    found = entrants(ModelBench(source=str(place / "model")), SilentReporter())
    assert list(found.make) == ["source, fp16 cache"]
    assert [note.split(":")[0] for note in found.notes] == [
        "no loss",
        "transformers was left out",
        "llama.cpp was left out",
    ]


def test_a_source_of_another_vocabulary_is_refused(place: Path, tmp_path: Path, capsys) -> None:
    other = {**WIDE, "vocab_size": 300}
    folder = write_folder(tmp_path / "other", other, random_weights(other))
    assert main(["bench", "model", str(folder), str(place / "out"), "--against", "plain-gpt"]) == 2
    assert "was not converted from the other" in capsys.readouterr().err


def test_what_is_too_long_or_too_large_is_left_out(place: Path, monkeypatch) -> None:
    from dba_plugins.bench.model import measure
    from dba_plugins.bench.model.command import run
    from dba_plugins.bench.model.request import ModelBench

    request = ModelBench(
        source=str(place / "model"), contexts=(6, 9), most_prefill=8, resident=False, repeats=2, new_tokens=1,
        against=("recomputing",), threads=(1,),
    )  # fmt: skip
    before = torch.get_num_threads()
    report = run(request, SilentReporter())
    assert torch.get_num_threads() == before
    assert [(row["phase"], row["length"]) for row in report.rows] == [
        ("prefill", 6), ("decode", 6), ("decode", 9)
    ]  # fmt: skip
    assert [row["against_fastest"] for row in report.rows] == [None] * 3
    assert "prefill of 1 x 9 tokens: over --most-prefill 8, not measured" in report.notes
    monkeypatch.setattr(measure, "free_bytes", lambda: 100)
    report = run(request, SilentReporter())
    assert not report.rows
    assert any("source, fp16 cache: no decode of 1 x 9 tokens, it needs" in note for note in report.notes)


def test_each_is_measured_alone_in_a_process(place: Path) -> None:
    from dba_plugins.bench.model.entrants import entrants
    from dba_plugins.bench.model.request import ModelBench
    from dba_plugins.bench.model.resident import resident_bytes

    request = ModelBench(source=str(place / "model"), against=("recomputing",), new_tokens=1)
    (made,) = entrants(request, SilentReporter()).make.values()
    found = resident_bytes(request, made(), batch=1, length=9)
    assert found is None or 2**25 < found < 2**31


def test_the_picture_has_who_takes_part_in_one_phase_alone(tmp_path: Path) -> None:
    from dba_core.report import Report, Table
    from dba_plugins.bench.charts import model_chart

    rows = [
        {"phase": phase, "threads": 1, "batch": 1, "length": length, "name": name, "tokens_per_second": 2.0}
        for phase, name in (("prefill", "a"), ("decode", "a"), ("decode", "b"))
        for length in (512, 2048)
    ]
    report = Report(name="model", title="t", tables=(Table(columns=(), rows=rows),))
    model_chart(tmp_path / "model.png", report)
    assert (tmp_path / "model.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch": ()}, "no batch to measure; give at least one"),
        ({"contexts": (9, 0)}, "contexts: 0 is out of range; allowed: numbers >= 1"),
        ({"new_tokens": 0}, "new_tokens: 0 is out of range; allowed: numbers >= 1"),
        ({"threads": (-1,)}, "threads: -1 is out of range; allowed: numbers from 1 to 1024"),
        ({"against": ("ollama",)}, "against: unknown value 'ollama'"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, text) -> None:
    from dba_plugins.bench.model.request import ModelBench

    with pytest.raises(UsageError) as error:
        ModelBench(source="model", **changes)
    assert str(error.value).startswith(text)


def test_a_measurement_without_a_picture_has_no_plot(capsys) -> None:
    for command in ("kernels", "plugins", "recall", "startup"):
        assert main(["bench", command, "--plot"]) == 2
        assert "--plot" in capsys.readouterr().err
