"""What the shells are offered: click's completion classes driven in process, bash with its broken words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import FishComplete, ShellComplete, ZshComplete

from dba_cli.completion import LineBashComplete
from dba_cli.main import cli

RUNS = ("20250101-000000-first", "20250102-000000-second")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, without the library's variables."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DBA_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def runs(place: Path) -> Path:
    for number, name in enumerate(RUNS):
        folder = place / "runs" / name
        folder.mkdir(parents=True)
        (folder / "resolved_config.json").write_text("{}")
        os.utime(folder / "resolved_config.json", (number, number))
    return place


def offered(words: str, incomplete: str) -> list[str]:
    """The words that are offered after `dba WORDS`; a file is `<file>`."""
    found = ShellComplete(cli, {}, "dba", "_DBA_COMPLETE").get_completions(shlex.split(words), incomplete)
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in found]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("", "e", ["eval"]),
        ("plugins", "l", ["list"]),
        ("bench", "qu", ["quality"]),
        ("run --preset", "paper-b", ["paper-baseline", "paper-bottleneck"]),
        ("run --plugin", "ga", ["gate="]),
        ("run --plugin", "gate=ca", ["gate=causal"]),
        ("run --plugin", "summarizer@layers.0-1=co", ["summarizer@layers.0-1=conv"]),
        ("run --plugin", "null_token=", ["null_token=auto", "null_token=learned", "null_token=none"]),
        ("run --plugin", "nothing=", []),
        ("sample latest --plugin", "", ["decode_backend="]),
        ("sample latest --plugin", "decode_backend=str", ["decode_backend=streaming"]),
        ("run --set", "mod", ["model."]),
        ("run --set", "model.d_m", ["model.d_model="]),
        ("run --set", "training.warm", ["training.warmup_steps="]),
        ("run --set", "training.compile=", ["training.compile=true", "training.compile=false"]),
        ("run --set", "model.norm=", ["model.norm=rmsnorm", "model.norm=layernorm"]),
        ("run --set", "model.attention.mode=g", ["model.attention.mode=gqa"]),
        ("run --set", "plugins.gate.name=st", ["plugins.gate.name=static"]),
        ("run --set", "device=cud", ["device=cuda", "device=cuda:0"]),
        ("run --set", "seed=", []),
        ("run --set", "nothing.at.all=", []),
        ("run --kv-policy", "k", ["ksem=", "kgeo="]),
        ("run --kv-policy", "ksem=q", ["ksem=q8_0", "ksem=q4_0"]),
        ("run --kv-policy", "ksem=q4_0@1", ["ksem=q4_0@16", "ksem=q4_0@128"]),
        ("run --kv-policy", "ksem=fp16,k", ["ksem=fp16,kgeo="]),
        ("run --kv-policy", "ksem=fp16,kgeo=n", ["ksem=fp16,kgeo=nf4"]),
        ("run --kv-policy", "resid=3", ["resid=32"]),
        ("eval latest --kv-policy", "v=bf", ["v=bf16"]),
        ("bench decode --kv-policy", "v=bf", ["v=bf16"]),
        ("bench decode --backend", "cpu,str", ["cpu,streaming"]),
        ("run --device", "c", ["cpu", "cuda", "cuda:0"]),
        ("sample latest --checkpoint", "", ["best", "last"]),
        ("run --data", "py", ["pydoc"]),
        ("run --data", "my", ["<file>"]),
        ("run --config", "my", ["<file>"]),
        ("run --out", "my", ["<dir>"]),
        ("plugins info", "cau", ["causal"]),
        ("plugins why", "ga", ["gate"]),
        ("run --no-plugin", "conv", ["conv", "convert"]),
        ("config diff", "preset:paper-g", ["preset:paper-gqa"]),
        ("completion", "z", ["zsh"]),
        ("nothing", "x", []),
    ],
)
def test_values_are_offered(place: Path, words: str, incomplete: str, expected: list[str]) -> None:
    assert offered(words, incomplete) == expected


@pytest.mark.parametrize(
    "words", ["sample", "eval", "drift", "tune", "bench quality", "run --resume", "config diff latest"]
)
def test_runs_are_offered_newest_first(runs: Path, words: str) -> None:
    found = [word for word in offered(words, "") if not word.startswith("preset:")]
    assert found == ["latest", RUNS[1], RUNS[0]]
    assert offered(words, "20250101") == [RUNS[0]]
    assert offered(words, "runs/2025") == [f"runs/{name}" for name in RUNS]
    assert offered(words, "else/where") == ["<file>"]


def test_without_runs_a_path_is_offered(place: Path) -> None:
    assert offered("sample", "") == ["<file>"]


def test_every_set_key_is_reached_level_by_level(place: Path) -> None:
    """Whatever `dba config show` prints can be typed with the tab key."""
    from dba_core.config.layers import flatten
    from dba_core.config.run import RunConfig

    for path in flatten(RunConfig().to_dict(), ""):
        if path[0] == "plugins" and path[-1] in ("options", "record"):
            continue
        for depth in range(1, len(path) + 1):
            typed = ".".join(path[:depth])
            assert f"{typed}{'=' if depth == len(path) else '.'}" in offered("run --set", typed[:-1])


def test_what_cannot_be_read_offers_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBA_PLUGINS_ALLOW", "nothing-like-it")
    from dba_core.registry import Registry

    Registry.default.cache_clear()
    try:
        assert offered("run --plugin", "gate=") == []
        assert offered("plugins info", "") == []
    finally:
        Registry.default.cache_clear()


@pytest.mark.parametrize(
    ("line", "breaks", "expected"),
    [
        ("dba run --plugin ga", "=:", ["gate="]),
        ("dba run --plugin gate=ca", "=:", ["causal"]),
        ("dba run --plugin=gate=ca", "=:", ["causal"]),
        ("dba run --plugin gate=ca", "", ["gate=causal"]),
        ("dba run --plugin=gate=ca", "", ["--plugin=gate=causal"]),
        ("dba run --kv-policy ksem=q4_0,kg", "=:", ["q4_0,kgeo="]),
        ('dba run --kv-policy "ksem=q4_0,kgeo=nf', "=:", ["ksem=q4_0,kgeo=nf4"]),
        ("dba run --device cuda:", "=:", ["0"]),
        ("dba config diff preset:paper-g", "=:", ["paper-gqa"]),
        ("A=b /usr/bin/dba plugins why ga", "=:", ["gate"]),
        ("dba plugins why ", "=:", ["summarizer", "gate", "null_token", "decode_backend"]),
        ("dba run --preset paper-gq --dry-run", "=:", ["--dry-run"]),
    ],
)
def test_bash_gets_what_follows_its_last_word_break(
    place: Path, monkeypatch: pytest.MonkeyPatch, line: str, breaks: str, expected: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", f"{line} and more behind the cursor")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    monkeypatch.setenv("COMP_WORDBREAKS", f" \t\n\"'><;|&({breaks}")
    answer = LineBashComplete(cli, {}, "dba", "_DBA_COMPLETE").complete()
    assert answer.splitlines() == [f"plain,{word}" for word in expected]


def test_the_cursor_is_counted_in_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = 'dba run --name "größe" --device cp'
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode())))
    assert LineBashComplete(cli, {}, "dba", "_DBA_COMPLETE").complete() == "plain,cpu"


def test_zsh_and_fish_get_whole_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "dba run --plugin gate=ca")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "gate=causal" in ZshComplete(cli, {}, "dba", "_DBA_COMPLETE").complete().splitlines()
    monkeypatch.setenv("COMP_CWORD", "gate=ca")
    assert "gate=causal" in FishComplete(cli, {}, "dba", "_DBA_COMPLETE").complete()


def test_completion_loads_no_torch_and_says_nothing_on_stderr(dba_process, tmp_path: Path) -> None:
    line = "dba run --set plugins.gate.name=ca"
    code = (
        "import sys\nfrom dba_cli.main import main\n"
        "try:\n    main([])\nfinally:\n"
        "    assert not {'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = dba_process(
        code=code,
        _DBA_COMPLETE="bash_complete",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        COMP_WORDBREAKS="=",
    )
    assert (done.code, done.out, done.err) == (0, "plain,causal\n", "")


def test_bash_itself_completes(tmp_path: Path, dba_process) -> None:
    """The printed script in a real bash, with the words as bash hands them over."""
    script = dba_process("completion", "bash").out
    program = tmp_path / "bin" / "dba"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dba_cli "$@"\n')
    program.chmod(0o755)
    line = "dba run --plugin gate=ca"
    asked = (
        f"{script}\ncompopt() {{ :; }}\nCOMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n"
        f"_dba_completion {shlex.quote(str(program))}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        "complete -p dba\n"
    )
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["causal", "complete -o nosort -F _dba_completion dba"], done.stderr
