"""The folder that a run leaves, `runs/<YYYYmmdd-HHMMSS>-<name>/`: found again, written by one at a time.

Nothing is overwritten: a name that is taken gets -2, -3 ... An operating system's lock, which ends with the
process that holds it, keeps a second writer out:

    RUN/.lock              locked while a process writes into RUN
    RUN/.lock.json         who that is: {"pid": 4711, "host": "...", "since": "..."}

Who only reads takes no lock, so a folder that cannot be written can be read. The processes of one torchrun
are one writer: the main one holds the lock for all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import attrs
from filelock import FileLock, Timeout

from dba_core.config.run import RunConfig
from dba_core.documents import read_object
from dba_core.errors import CheckpointError, ConfigError, DBAError, UsageError, nearest

DEFAULT_ROOT = Path("runs")
LATEST = "latest"
_CONFIG = "resolved_config.json"
#: Letters of a run's name that its folder has; file systems take 255 in all.
_LONGEST_NAME = 120


class FolderError(DBAError):
    """A run's folder cannot be made or written."""


class FolderInUseError(FolderError):
    """Another process writes into the folder."""


@attrs.frozen
class RunFolder:
    """The paths inside one run's folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / _CONFIG

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def summary_json(self) -> Path:
        return self.path / "summary.json"

    @property
    def summary_md(self) -> Path:
        return self.path / "summary.md"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.txt"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def is_run(self) -> bool:
        return self.config_file.is_file()


def new_folder(root: Path, name: str, *, now: datetime) -> RunFolder:
    """Create the folder of a new run under `root`. Raises FolderError where that cannot be."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_LONGEST_NAME] or "run"
    stem = f"{now:%Y%m%d-%H%M%S}-{slug}"
    with disk_errors(root, "Give another root=, a folder that can be written"):
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = root / (stem if number == 1 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
        return RunFolder(path)


@contextlib.contextmanager
def disk_errors(place: Path, advice: str) -> Iterator[None]:
    """Within: what the disk refuses (full, read-only, gone) is a FolderError with place and advice."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        raise FolderError(f"{where} could not be written ({error.strerror or error}). {advice}") from error


def read_resolved(folder: RunFolder) -> RunConfig:
    """The configuration that a run recorded. Raises ConfigError with the file's name."""
    if not folder.is_run:
        raise CheckpointError(f"{folder.config_file} is missing; {folder.path} is no run's folder")
    data = read_object(folder.config_file, error=ConfigError, advice="Restore it, or start a new run")
    try:
        return RunConfig.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{error.message} (in {folder.config_file})", path=error.path) from None


def resuming(folder: RunFolder) -> str:
    """The call that goes on with a run."""
    return f"resume_job({str(folder.path)!r})"


def find_run(text: str | Path, *, weights: str | None = None) -> RunFolder:
    """The run that `text` means: its folder, a unique part of its folder's name, or `latest`.

    A text without a folder is looked for under `runs/`; `some/where/latest` is the newest in `some/where`.
    weights: `best` or `last`, which `latest` must have; runs without it, and runs whose configuration cannot
    be read, are then passed over. Raises UsageError that lists the runs there are.
    """
    if not isinstance(text, (str, Path)):
        raise UsageError(
            f"the run is {text!r} ({type(text).__name__}); give its folder, a part of its name, or 'latest'"
        )
    given = Path(text)
    folder = RunFolder(given.parent if given.name == _CONFIG else given)
    if folder.is_run:
        return folder
    root = given.parent if str(given.parent) != "." or str(text).startswith(".") else DEFAULT_ROOT
    runs = runs_in(root)
    if given.name == LATEST and runs:
        return runs[-1] if weights is None else _newest_with(weights, runs, root)
    found = [run for run in runs if given.name in run.path.name]
    if len(found) == 1:
        return found[0]
    raise UsageError(_not_found(str(text), given.name, root, runs, found))


def _newest_with(weights: str, runs: list[RunFolder], root: Path) -> RunFolder:
    passed = []
    for run in reversed(runs):
        if not (run.checkpoint / weights).is_file():
            passed.append(f"{run.path.name} (it has no checkpoint {weights!r} yet)")
            continue
        try:
            read_resolved(run)
        except DBAError as error:
            passed.append(f"{run.path.name} (its configuration cannot be read: {error})")
        else:
            return run
    raise UsageError(
        f"no run in {root} has weights to use. Passed over: {'; '.join(passed)}. Let one train until its "
        "first checkpoint, or go on with one: resume_job('RUN')"
    )


def runs_in(root: Path) -> list[RunFolder]:
    """The runs in a folder, oldest first."""
    if not root.is_dir():
        return []
    runs = [run for run in map(RunFolder, root.iterdir()) if run.is_run]
    return sorted(runs, key=lambda run: (run.config_file.stat().st_mtime_ns, run.path.name))


def _not_found(text: str, name: str, root: Path, runs: list[RunFolder], found: list[RunFolder]) -> str:
    if found:
        fitting = ", ".join(run.path.name for run in found)
        return f"{text!r} fits {len(found)} runs in {root}: {fitting}. Give more of the name, or 'latest'."
    if not runs:
        return f"no run at {text!r} (it has no {_CONFIG}) and none in {root}. Make one with run_job()"
    names = [run.path.name for run in runs]
    close = nearest(name, names) or names[-3:]
    return (
        f"no run at {text!r} and no run in {root} with that in its name. Nearest: {', '.join(close)}. "
        "Give a run's folder, a part of its name, or 'latest'."
    )


@contextlib.contextmanager
def one_writer(lock: Path, *, folder: Path) -> Iterator[None]:
    """Within: this process alone writes into `folder`. lock: the lock's file, which is there only meanwhile.

    Raises FolderInUseError, with the other process, where one writes already, and FolderError where the file
    cannot be made; nothing has been written then.
    """
    held = FileLock(str(lock))
    holder = lock.with_name(f"{lock.name}.json")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use: {_who(holder)} writes into it. Wait until that has finished, or stop it; "
            "commands that only read the folder need not wait"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise FolderError(
            f"{folder} cannot be locked for writing ({error}); make it writable, or copy it to a disk that "
            "takes files and locks"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            myself = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
            holder.write_text(json.dumps(myself), encoding="utf-8")
        yield
    finally:
        for path in (holder, lock):
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only by now
                path.unlink()
        held.release()


def _who(holder: Path) -> str:
    """The process that a holder's file names, as far as it does."""
    try:
        data = read_object(holder, error=CheckpointError, advice="")
    except CheckpointError:
        return "another process"
    pid, host, since = (ascii(data.get(key))[:80].strip("'") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} (since {since})"
