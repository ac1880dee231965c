"""Kills, two processes in one folder, and a disk that fills: what a run is worth after them.

The measure is a run that nothing disturbed: whatever happened, going on with `dba run --resume` must end in
its numbers, line by line of `metrics.jsonl`. Every `dba` is a process of its own, forked from a server that
has imported everything, so that one costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import attrs
from campaign_inputs import TINY

STEPS = 30
#: What a run imports on its way, so that a fork of the server imports nothing: torch's optimizers alone bring
#: dynamo, which takes longer than the run.
_PRELOADED = [
    "dba_cli.commands.run",
    "dba_cli.output.progress",
    "dba_core.generation.loop",
    "dba_core.runs.job",
    "dba_core.runs.plots",
    "dba_plugins.auto_order",
    "dba_plugins.decode.cpu.backend",
    "dba_plugins.decode.cpu.compiler",
    "dba_plugins.decode.cpu.plugin",
    "dba_plugins.decode.streaming",
    "dba_plugins.gates.causal",
    "dba_plugins.kv_formats.plugins",
    "dba_plugins.null_tokens.none",
    "dba_plugins.summarizers.linear",
    "matplotlib.backends.backend_svg",
    "torch._dynamo",
]
_SLOWER = ["--set", f"training.steps={STEPS}", "--set", "training.eval_every=3"]


@attrs.frozen
class Tries:
    """How many of `count` tries ended as they should; what the others said."""

    name: str
    count: int
    bad: tuple[str, ...]


@attrs.frozen
class _Process:
    process: ForkServerProcess
    log: Path

    def wait(self, timeout: float = 120.0) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.said}")
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace").strip()


def _dba(arguments: list[str], log: str) -> None:
    """In the child: stdout and stderr to a file, then the command."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from dba_cli.main import main

    sys.exit(main(arguments))


def start(arguments: list[str], log: Path) -> _Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_dba, args=(arguments, str(log)))
    process.start()
    return _Process(process, log)


def arguments_of(folder: Path, *, text: Path) -> list[str]:
    """A run of STEPS steps with an evaluation, and so a checkpoint, at every third."""
    return ["run", "--data", str(text), "--out", str(folder), *TINY, *_SLOWER]


def write_text(folder: Path) -> Path:
    path = folder / "song.txt"
    path.write_text("".join(f"{n} green bottles hanging on the wall\n" for n in range(120, 0, -1)))
    return path


def numbers(run: Path) -> list[tuple[str, int, float]]:
    """(kind, step, loss) of every line of metrics.jsonl, and the last loss of the summary."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    kept = [(row["kind"], row["step"], row["loss"]) for row in rows]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return [*kept, ("summary", STEPS, summary["losses"]["held_out"])]


@functools.cache
def undisturbed() -> tuple[list[tuple[str, int, float]], float]:
    """The numbers of such a run, and how many seconds it takes once the server is there."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        text, log = write_text(root), root / "log"
        start(["--version"], log).wait()
        began = time.monotonic()
        process = start(arguments_of(root / "runs", text=text), log)
        assert process.wait() == 0, process.said
        return numbers(_only(root / "runs")), time.monotonic() - began


def _only(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def kills(root: Path, *, count: int, seed: int = 0) -> Tries:
    """SIGKILL at any instant, up to three times in a run; then the run goes on to the undisturbed numbers.

    A run that was killed before its first checkpoint has nothing to go on with; saying so is right, and the
    run is started anew.
    """
    (expected, length), text, chance = undisturbed(), write_text(root), random.Random(seed)
    bad = []
    for number in range(count):
        folder, log = root / f"killed-{number}", root / f"killed-{number}.log"
        command = arguments_of(folder, text=text)
        for _ in range(chance.randint(1, 3)):
            process = start(command, log)
            time.sleep(chance.uniform(0.05, 1.0) * length)
            process.process.kill()
            process.process.join()
            made = list(folder.iterdir()) if folder.exists() else []
            if made and (made[0] / "checkpoint" / "last").exists():
                command = ["run", "--resume", str(made[0]), "--quiet"]
            elif made:
                problem = _nothing_to_resume(made[0], log)
                if problem:
                    bad.append(f"{number}: {problem}")
                folder = root / f"killed-{number}-{len(list(root.iterdir()))}"
                command = arguments_of(folder, text=text)
        process = start(command, log)
        code = process.wait()
        if code or numbers(_only(folder)) != expected:
            bad.append(f"{number}: exit code {code}, {process.said[-300:]}")
        elif dead := _dead_parts(_only(folder)):
            bad.append(f"{number}: left {dead}")
    return Tries("killed (SIGKILL), then resumed to the undisturbed numbers", count, tuple(bad))


def _nothing_to_resume(run: Path, log: Path) -> str:
    """What is wrong with the answer to --resume of a run without a checkpoint; empty where nothing is."""
    process = start(["run", "--resume", str(run), "--quiet"], log)
    code = process.wait()
    good = code not in (0, None) and "error:" in process.said and "unexpected" not in process.said
    return "" if good else f"no checkpoint yet, and --resume: exit code {code}, {process.said[-300:]}"


def _dead_parts(run: Path) -> list[str]:
    """Files and folders of saves that never ended."""
    named = {json.loads((run / "checkpoint" / name).read_text())["directory"] for name in ("best", "last")}
    left = [path.name for path in (run / "checkpoint").glob("step-*") if path.name not in named]
    return left + [path.name for path in run.rglob("*.new")]


def signals(root: Path, *, count: int) -> Tries:
    """SIGINT, SIGTERM and SIGHUP: the step is finished, the run saved, exit code 130, and it goes on; before
    the first step it ends at once, and begins again.
    """
    (expected, _), text = undisturbed(), write_text(root)
    bad = []
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in range(count):
        folder, log = root / f"told-{number}", root / f"told-{number}.log"
        process = start(arguments_of(folder, text=text), log)
        _until(lambda folder=folder: any(folder.glob("*/metrics.jsonl")))
        time.sleep(0.05 * (number % 4))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.process.pid or 0, kinds[number % 3])
        code = process.wait()
        run = _only(folder)
        if code not in (0, 130):
            bad.append(f"{kinds[number % 3].name}: exit code {code}, {process.said[-300:]}")
            continue
        again = start(["run", "--resume", str(run), "--quiet"], log) if code else process
        if again.wait() or numbers(run) != expected:
            bad.append(f"{kinds[number % 3].name}, resumed: {again.said[-300:]}")
    return Tries("told to stop (SIGINT, SIGTERM, SIGHUP): saved, resumed", count, tuple(bad))


def _until(ready: Callable[[], bool], *, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("the run did not begin")
        time.sleep(0.01)


def two_processes(root: Path, *, count: int) -> Tries:
    """Two `--resume` of one run at the same time: one goes on to the undisturbed numbers, the other ends with
    an error that holds the number of the first process. Its folder is whole.
    """
    (expected, _), text = undisturbed(), write_text(root)
    bad = []
    for number in range(count):
        folder, logs = root / f"shared-{number}", [root / f"shared-{number}-{n}.log" for n in range(2)]
        first = start(arguments_of(folder, text=text), logs[0])
        _until(lambda folder=folder: any(folder.glob("*/checkpoint/last")))
        first.process.kill()
        first.process.join()
        command = ["run", "--resume", str(_only(folder)), "--quiet"]
        both = [start(command, log) for log in logs]
        codes = [process.wait() for process in both]
        losers = [n for n, code in enumerate(codes) if code]
        if len(losers) > 1 or numbers(_only(folder)) != expected:
            bad.append(f"exit codes {codes}, {[process.said[-200:] for process in both]}")
        elif losers:
            winner = both[1 - losers[0]].process.pid
            if str(winner) not in both[losers[0]].said:
                bad.append(f"the number {winner} is not in: {both[losers[0]].said[-300:]}")
    return Tries("two processes resume one run: one does, one is refused by number", count, tuple(bad))


def can_mount() -> bool:
    """Whether a small disk can be made here: a tmpfs in a mount namespace of its own (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = ["unshare", "-r", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


_ON_A_SMALL_DISK = """
set -u
mount -t tmpfs -o size={size}k none "{disk}"
cd /
"{python}" -m dba_cli {command} > "{log}" 2>&1
echo $? > "{log}.code"
mount -o remount,size=64m "{disk}"
run=$(ls -d "{disk}"/runs/* 2>/dev/null | head -1)
if [ -n "$run" ] && [ -e "$run/checkpoint/last" ]; then
    "{python}" -m dba_cli run --resume "$run" --quiet > "{log}.again" 2>&1
    echo $? > "{log}.again.code"
    cp -r "$run" "{out}"
fi
"""


def full_disk(root: Path, *, sizes_kib: tuple[int, ...]) -> Tries:
    """A disk of so many KiB fills while the run writes to it: exit code 1 with a sentence; and with room
    again, the run goes on to the undisturbed numbers, where it had saved before.
    """
    (expected, _), text = undisturbed(), write_text(root)
    bad = []
    for size in sizes_kib:
        disk, log, out = root / f"disk-{size}", root / f"disk-{size}.log", root / f"saved-{size}"
        disk.mkdir()
        script = _ON_A_SMALL_DISK.format(
            size=size,
            disk=disk,
            python=sys.executable,
            command=" ".join(arguments_of(disk / "runs", text=text)),
            log=log,
            out=out,
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run(["unshare", "-r", "-m", "bash", "-c", script], check=False, env=environment)
        said = log.read_text(encoding="utf-8", errors="replace")
        code = int((root / f"{log.name}.code").read_text())
        if code != 1 or "error: " not in said or "unexpected" in said or "Errno" in said.split("error: ")[-1]:
            bad.append(f"{size} KiB: exit code {code}, {said[-300:]}")
        elif out.exists() and numbers(out) != expected:
            bad.append(f"{size} KiB, resumed with room: {(root / f'{log.name}.again').read_text()[-300:]}")
    return Tries(
        "the disk fills: a sentence, and with room again the run goes on", len(sizes_kib), tuple(bad)
    )
