"""A run as real processes: Ctrl-C from outside, and two processes that train together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runs_tiny import losses, only_run

pytestmark = pytest.mark.torch


def start(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dba_cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_saves_and_says_how_to_go_on(inputs, tmp_path: Path) -> None:
    process = start("run", *inputs, "--set", "training.steps=100000", "--out", str(tmp_path / "runs"))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 4:"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    folder = only_run(tmp_path / "runs")
    step = losses(folder)[-1][1]
    assert f"Interrupted after step {step} of 100000" in err
    assert f"Go on with: dba run --resume {folder.path}" in err
    state = next(folder.checkpoint.glob("step-*/state.json"))
    assert (
        max(json.loads(path.read_text())["step"] for path in folder.checkpoint.glob("step-*/state.json"))
        == step
    )
    assert state.is_file()


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_main_one_speaks(inputs, tiny, tmp_path: Path) -> None:
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    args = ["run", *inputs, "--out", str(tmp_path / "runs"), "--json"]
    processes = [start(*args, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    (out, err), other = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], err
    assert other == ("", "")
    assert json.loads(out)["training"]["processes"] == 2
    folder = only_run(tmp_path / "runs")
    assert folder.summary_md.is_file()
    alone = losses(tiny.folder)
    together = losses(folder)
    assert [row[:2] for row in together] == [row[:2] for row in alone]
    assert [row[2] for row in together] == pytest.approx([row[2] for row in alone], rel=1e-4)
