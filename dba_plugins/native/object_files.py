"""Compiled objects kept in a folder on the disk, where only their owner can have put them.

    file = magic, sha256(name, code), code

Machine code is loaded only from a regular file that belongs to the process's user and that nobody else may
write, in folders of which the same holds; a symbolic link is none. Anything else is refused with a warning,
and the code is compiled anew, in memory. A file is written whole or not at all; one that is cut short,
altered or another one's is not read. Without a folder that can be written every process compiles for itself,
and one warning says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from dba_core.errors import KernelCacheWarning

#: The folder of the compiled kernels; without it, the user's cache folder.
CACHE_VARIABLE = "DBA_CACHE_DIR"
_MAGIC = b"DBAK2\n"
_DIGEST = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

if sys.platform == "win32":
    _NO_FOLLOW, _BINARY = 0, os.O_BINARY
else:
    # without O_NONBLOCK the opening of a named pipe would wait for its writer
    _NO_FOLLOW, _BINARY = os.O_NOFOLLOW | os.O_NONBLOCK, 0

_noted: set[str] = set()


class RefusedError(Exception):
    """A file or a folder that somebody else may have written."""


def cache_folders() -> tuple[Path, ...]:
    """The folders of ours, outermost first; compiled kernels are kept in the last. None without a home."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return (Path(given),)
    try:
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no entry in the list of users
        _note(f"this user has no home directory; set {CACHE_VARIABLE} to a folder of this user")
        return ()
    return root / "dba", root / "dba" / "kernels"


def read(name: str) -> bytes | None:
    """The code kept under this name; None where there is none, it is damaged, or it is not trusted."""
    folders = cache_folders()
    if not folders:
        return None
    path = folders[-1] / name
    try:
        for folder in folders:
            _check(folder, os.lstat(folder), directory=True)
        data = _contents(path)
    except RefusedError as refusal:
        _note(str(refusal))
        return None
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST
    return data[head:] if data[:head] == _MAGIC + _hash(name, data[head:]) else None


def write(name: str, code: bytes) -> None:
    """Keep the code under this name, where that can be done safely."""
    folders = cache_folders()
    if not folders:
        return
    try:
        folders[0].parent.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
            _check(folder, os.lstat(folder), directory=True)
        path = folders[-1] / name
        if os.path.lexists(path):
            _check(path, os.lstat(path), directory=False)
        _replace(path, _MAGIC + _hash(name, code) + code)
    except RefusedError as refusal:
        _note(str(refusal))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        where = repr(str(folders[-1]))
        _note(f"they cannot be written to {where} ({reason}); set {CACHE_VARIABLE} to another folder")


def _contents(path: Path) -> bytes:
    """The bytes of a trusted file. What is read was checked once more: another may be there by then."""
    _check(path, os.lstat(path), directory=False)
    handle = os.open(path, os.O_RDONLY | _NO_FOLLOW | _BINARY)
    try:
        _check(path, os.fstat(handle), directory=False)
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _check(path: Path, found: os.stat_result, *, directory: bool) -> None:
    """Raise RefusedError unless this is a file or a folder that nobody else may write."""
    where, mode = repr(str(path)), found.st_mode
    kind = "a folder" if directory else "a file"
    if stat.S_ISLNK(mode):
        raise RefusedError(f"{where} is a symbolic link; put {kind} there, or name what it points to")
    if not (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)):
        raise RefusedError(f"{where} is not {kind}; remove it")
    if (
        sys.platform == "win32"
    ):  # access is not a matter of mode bits there, and the profile is the user's own
        return
    if found.st_uid != os.geteuid():
        raise RefusedError(
            f"{where} belongs to user {found.st_uid} and this process to user {os.geteuid()}; remove it, or "
            f"set {CACHE_VARIABLE} to a folder of this user"
        )
    if mode & _OTHERS_WRITE:
        raise RefusedError(
            f"{where} may be written by other users (mode {stat.S_IMODE(mode):04o}); see what is in it, then "
            f"`chmod go-w` it"
        )


def _replace(path: Path, data: bytes) -> None:
    """Write the file whole or not at all; of several writers at once the last one counts."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # the name is gone where all went well
            os.unlink(name)


def _hash(name: str, code: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + code).digest()


def _note(why: str) -> None:
    """Once in a process for each reason."""
    if why not in _noted:
        _noted.add(why)
        text = f"decode backend cpu: compiled kernels are not kept on the disk or read from it: {why}"
        warnings.warn(text, KernelCacheWarning, stacklevel=2)
