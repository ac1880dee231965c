"""A run whose names, corpus and streams are hostile: it ends well, its reports encode and hold no control
character, and it is never lost because nobody reads what it says.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs_tiny import Done, dba, only_run, write_inputs

from dba_cli.main import main
from dba_core.runs.pages import markdown
from dba_plugins.convert.decouple import Recipe
from dba_plugins.convert.findings import ConversionFindings, VariantFindings, report_of
from dba_plugins.convert.text_loss import TextLoss

pytestmark = pytest.mark.torch

SHORT = [
    f"--set={setting}"
    for setting in ("training.steps=2", "training.eval_every=2", "evaluation.fidelity_tokens=0")
]
NAME = "[/b] $x$ | `a` <b> \x1b[31m\n# 你好"
ANY = st.text(st.characters()) | st.text("|`<#\n\x1b[]/*_\\$a ")


def harmful(text: str) -> set[str]:
    """The control characters of a report, its line ends left out."""
    return {letter for letter in text if ord(letter) < 32 or 127 <= ord(letter) < 160} - {"\n"}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run whose name and corpus look like markup, with a file name that is no UTF-8."""
    place = tmp_path_factory.mktemp("nasty")
    args = write_inputs(place)
    folder = place / "[link=x] \x1b[2J"
    folder.mkdir()
    text = folder / (os.fsdecode(b"caf\xe9 [b].txt") if sys.platform == "linux" else "caf\xe9 [b].txt")
    text.write_text("\x1b[31mred\x9b \u202e\r\n[/b] | `a` <b>\r" * 60, encoding="utf-8", newline="")
    done = dba("run", *args, "--data", str(text), "--name", NAME, "--out", str(place / "runs"), *SHORT)
    assert done.code == 0, done.err
    assert not harmful(done.out)
    assert not harmful(done.err)
    assert "Run [/b] $x$ | `a` <b> \\x1b[31m # 你好" in done.out
    return place / "runs"


def test_its_data_is_exact_and_its_report_is_harmless(nasty: Path) -> None:
    folder = only_run(nasty)
    summary = json.loads(folder.summary_json.read_text(encoding="utf-8"))
    assert summary["name"] == NAME
    report = folder.summary_md.read_text(encoding="utf-8")
    assert report.startswith("# Run \\[/b\\] $x$ \\| \\`a\\` &lt;b> \\x1b\\[31m # 你好\n")
    assert not harmful(report)
    sample = summary["sample"]["prompt"] + summary["sample"]["text"]
    assert "\x1b" in sample, "the corpus is full of them"
    assert summary["sample"]["prompt"] in folder.samples_file.read_bytes().decode("utf-8")
    assert sorted(path.name for path in folder.plots.iterdir()) == ["gate.png", "kv_memory.png", "loss.png"]


def test_it_is_found_and_read_again(nasty: Path) -> None:
    """The corpus is under the name that the configuration recorded."""
    folder = str(only_run(nasty).path)
    for args in (["eval", folder], ["sample", folder, "--prompt", "a\x1b[31m"], ["run", "--resume", folder]):
        done = dba(*args)
        assert done.code == 0, done.err
        assert not harmful(done.out + done.err)


@pytest.fixture(scope="module")
def summary(tiny) -> dict[str, Any]:
    return json.loads(tiny.folder.summary_json.read_text(encoding="utf-8"))


@given(ANY)
@settings(max_examples=50)
def test_any_name_makes_a_report_that_encodes(summary: dict[str, Any], text: str) -> None:
    named = {
        **summary,
        "name": text,
        "folder": text,
        "data": {**summary["data"], "name": text},
        "warnings": [text],
        "sample": {**summary["sample"], "prompt": text, "text": text},
    }
    report = markdown(named)
    report.encode("utf-8")
    assert not harmful(report.replace("\t", ""))
    body = report.partition("## Sample")[0]
    shape = markdown(summary).partition("## Sample")[0]
    expected = shape.count("\n") + 2 * (1 - len(summary["warnings"]))  # a warning and the line above it
    assert body.count("\n") == expected, "no name makes a line of its own"


@given(ANY)
@settings(max_examples=50)
def test_any_tensor_name_makes_a_conversion_report_that_encodes(text: str) -> None:
    loss = TextLoss(nll=1.0, std_error=0.1, perplexity=2.7, tokens=9, window_nll=(1.0, 1.0))
    variant = VariantFindings(
        key="own",
        name=text,
        policy="fp16",
        bytes_per_token=8,
        bytes_per_token_target=8,
        ratio=1.0,
        losses={text: loss},
        delta_nll={text: 0.0},
        delta_std_error={text: 0.0},
    )
    report = ConversionFindings(
        source=text,
        family="llama",
        files=("config.json",),
        notes=(),
        parameters=10,
        recipe=Recipe(pairs=2),
        search=None,
        context=8,
        target_context=9,
        calibration={"name": text},
        calibration_tokens=8,
        pairs=(((0, 1),),),
        n_pairs=4,
        variants=(variant, variant),
        healed_steps=0,
        seconds={"load": 1.0},
        peak_memory_bytes=1,
        warnings=(f"the tensor {text} was left out",),
    )

    def page(found: ConversionFindings) -> str:
        return report_of(found, command="dba convert m --out o", out=Path("o")).markdown()

    written = page(report)
    written.encode("utf-8")
    assert not harmful(written.replace("\t", ""))
    assert written.count("\n") == page(attrs.evolve(report, source="x")).count("\n")
    assert sum(line.startswith("| ") for line in written.splitlines()) == 4


class Broken(io.TextIOWrapper):
    """A stream that takes `good` writes and no more."""

    def __init__(self, good: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._good = good

    def write(self, text: str) -> int:
        if self._good == 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self._good -= 1
        return len(text)


@pytest.mark.parametrize("good", [0, 2])
def test_a_run_is_complete_although_nobody_reads(good: int, inputs: list[str], tmp_path: Path) -> None:
    with contextlib.redirect_stdout(Broken(0)), contextlib.redirect_stderr(Broken(good)):
        code = main(["run", *inputs, "--out", str(tmp_path / "runs"), *SHORT])
    assert code == 1, "what was to be read is lost, and nothing else"
    folder = only_run(tmp_path / "runs")
    assert json.loads(folder.summary_json.read_text(encoding="utf-8"))["training"]["steps"] == 2
    assert folder.summary_md.is_file()


def test_a_sample_ends_when_its_reader_has_gone(tiny) -> None:
    err = io.StringIO()
    with contextlib.redirect_stdout(Broken(3)), contextlib.redirect_stderr(err):
        code = main(["sample", str(tiny.folder.path), "--prompt", "7"])
    assert (code, err.getvalue()) == (1, "")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--prompt", "a\udcff"], 3, "\\udcff at position 1, which is no character"),
        (["--prompt", "a", "--stop", "\udcff"], 2, "--stop: '\\udcff' is no text"),
    ],
)
def test_a_prompt_that_is_no_text(tiny, args: list[str], code: int, said: str) -> None:
    done = dba("sample", str(tiny.folder.path), *args)
    assert done.code == code
    assert said in done.err


@pytest.mark.parametrize("key", ["name", "generation.prompt"])
def test_a_setting_that_is_no_text(key: str) -> None:
    done = dba("config", "show", "--set", f"{key}=caf\udce9")
    assert done.code == 3
    assert done.err.startswith(f"error: {key}: 'caf\\udce9' is no text: it holds \\udce9 at position 3")


def from_input(folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Done:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="cp1252"))
    return dba("sample", str(folder), "--prompt-file", "-", "--json", "--max-new-tokens", "1")


@pytest.mark.parametrize("data", ["grün\r\n你".encode(), b"\xef\xbb\xbf" + "grün\n你".encode()])
def test_standard_input_is_utf_8_in_every_locale(tiny, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = from_input(tiny.folder.path, data, monkeypatch)
    assert done.json["samples"][0]["prompt"] == "grün\n你"


@pytest.mark.parametrize("data", ["grün".encode("latin-1"), "grün".encode("utf-16")])
def test_standard_input_that_is_no_utf_8(tiny, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = from_input(tiny.folder.path, data, monkeypatch)
    assert done.code == 2
    assert "standard input is not UTF-8 text" in done.err


def test_no_standard_input_at_all(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    done = dba("sample", str(tiny.folder.path), "--prompt-file", "-")
    assert done.code == 2
    assert "standard input is closed" in done.err
