"""`dba` as a process: streams, colours, a closed pipe, an error that nobody expected."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BOOM = """
import sys
import click
from dba_cli import main

@click.command()
def boom():
    raise RuntimeError("the wires\\nare crossed")

main.cli.add_command(boom)
main.LazyGroup.get_command = lambda self, ctx, name: boom
main.LazyGroup.list_commands = lambda self, ctx: ["boom"]
sys.exit(main.main(["boom"]))
"""


def on_a_terminal(tmp_path: Path, *args: str, **environment: str) -> str:
    """What `dba ARGS` writes to a terminal."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "dba_cli", *args]
    process = subprocess.Popen(
        command,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**env, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    process.wait(timeout=60)
    return text.decode()


def style_numbers(text: str) -> set[int]:
    """The parameters of all escape sequences that set a style."""
    found = re.findall(r"\x1b\[([0-9;]*)m", text)
    return {int(number) for numbers in found for number in numbers.split(";") if number}


def test_json_is_one_document_and_nothing_else(dba_process) -> None:
    done = dba_process("plugins", "list", "--json")
    assert done.code == 0
    assert done.err == ""
    assert json.loads(done.out)["plugins"]


def test_an_error_is_one_paragraph_on_stderr(dba_process) -> None:
    done = dba_process("config", "show", "--set", "seed=-1")
    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("error: seed: -1 is out of range")
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err


def test_a_traceback_of_an_expected_error_only_when_asked_for(dba_process) -> None:
    done = dba_process("config", "show", "--set", "seed=-1", DBA_TRACEBACK="1")
    assert done.code == 3
    assert "Traceback" in done.err
    assert "ConfigError" in done.err


def test_an_unexpected_error_exits_1_and_says_how_to_see_more(dba_process) -> None:
    done = dba_process(code=BOOM)
    assert done.code == 1
    assert done.out == ""
    assert "unexpected RuntimeError in boom" in done.err
    assert "are crossed" in done.err
    assert "DBA_TRACEBACK=1" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in dba_process(code=BOOM, DBA_TRACEBACK="1").err


def test_colours_on_a_terminal_unless_no_color(tmp_path: Path) -> None:
    assert 31 in style_numbers(on_a_terminal(tmp_path, "rnu"))
    assert not style_numbers(on_a_terminal(tmp_path, "rnu", NO_COLOR="1"))
    table = on_a_terminal(tmp_path, "plugins", "list", NO_COLOR="1")
    assert "causal" in table
    assert not {number for number in style_numbers(table) if number >= 30}, "bold is no colour, 30 and up are"


def test_no_colours_in_a_pipe(dba_process) -> None:
    assert "\x1b" not in dba_process("plugins", "list").out


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "dba_cli", "config", "show"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, "None 4000"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], left: str) -> None:
    """OpenMP reads it when torch is loaded, so it must be set before, in the same process."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"import os, dba_cli.main as m; m.main(['--version']); print(*map(os.environ.get, {names}))"
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == left
