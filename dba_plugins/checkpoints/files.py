"""What is looked at before a model's file is opened: that it is one, and holds something."""

from __future__ import annotations

from pathlib import Path

from dba_core.documents import LFS_POINTER
from dba_core.errors import CheckpointError


def size_of_file(path: Path) -> int:
    """Its bytes. Raises CheckpointError for a file that is missing, empty, unreadable, or a pointer of
    large-file storage that stands in its place.
    """
    try:
        with path.open("rb") as opened:
            head = opened.read(len(LFS_POINTER))
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); get the file again"
        ) from None
    if not size:
        raise CheckpointError(f"{path} is empty; get the file again")
    if head == LFS_POINTER.encode("ascii"):
        raise CheckpointError(
            f"{path} is a pointer of large-file storage, not the file itself. Fetch the file: git lfs pull"
        )
    return size
