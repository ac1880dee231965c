"""One writer per folder: an operating system's lock, which ends with the process that holds it.

    RUN/.lock              locked while a process writes into RUN
    RUN/.lock.json         who that is: {"pid": 4711, "host": "...", "since": "..."}

Commands that only read take no lock, so a folder that cannot be written can be read. The processes of one
torchrun are one writer: the main one holds the lock for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dba_core.documents import read_object
from dba_core.errors import CheckpointError, DBAError
from dba_core.runs.folder import FolderError
from dba_core.training.distributed import World


class FolderInUseError(FolderError):
    """Another process writes into the folder."""


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
            holder.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        for path in (holder, lock):
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only by now
                path.unlink()
        held.release()


@contextlib.contextmanager
def one_group_of_writers(world: World, folder: Path) -> Iterator[None]:
    """The same for a run's folder and all processes that train it together."""
    with contextlib.ExitStack() as stack:
        refused: DBAError | None = None
        if world.is_main:
            try:
                stack.enter_context(one_writer(folder / ".lock", folder=folder))
            except DBAError as error:
                refused = error
        told = torch.tensor([float(refused is not None)], device=world.device)
        world.broadcast([told])
        if refused is not None:
            raise refused
        if told.item():
            raise FolderInUseError(f"the main process could not take {folder}; its own message says why")
        yield


def _myself() -> dict[str, object]:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _who(holder: Path) -> str:
    """The process that a holder's file names, as far as it does."""
    try:
        data = read_object(holder, error=CheckpointError, advice="")
    except CheckpointError:
        return "another process"
    pid, host, since = (ascii(data.get(key))[:80].strip("'") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} (since {since})"
