"""What the operating system refused, as a sentence with the path and the next step."""

from __future__ import annotations

import errno

_CAUSES: dict[int | None, tuple[str, str]] = {
    errno.ENOENT: (
        "does not exist, and cannot be made there",
        "Check how it is spelled and the folder that the command runs in, or name another place",
    ),
    errno.EACCES: ("may not be read or written by you", "Change its permissions, or name another place"),
    errno.EPERM: ("may not be changed by you", "Change its permissions, or name another place"),
    errno.EROFS: ("lies on a file system that cannot be written", "Name another place"),
    errno.ENOSPC: ("does not fit: the disk is full", "Free some space, or name a place on another disk"),
    errno.EDQUOT: ("does not fit: your quota is used up", "Free some space, or name another place"),
    errno.EISDIR: ("is a folder", "Give a file"),
    errno.ENOTDIR: ("is no folder, or lies under a file", "Give a folder"),
    errno.EEXIST: ("exists already, and is no folder or may not be replaced", "Name another place"),
    errno.ENOTEMPTY: ("is a folder that holds something", "Name another place"),
    errno.ENAMETOOLONG: ("has a name that is too long", "Give a shorter name"),
    errno.ELOOP: ("is a link that leads to itself", "Name the file itself"),
    errno.EMFILE: ("cannot be opened: too many files are open", "Raise the limit (ulimit -n)"),
    errno.ENOMEM: ("does not fit into memory", "Free some memory, or give something smaller"),
    errno.EIO: ("cannot be read or written: the disk reports an error", "Name a place on another disk"),
}


def os_error_text(error: OSError) -> str:
    """One paragraph: which file, what is wrong, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = " or ".join(map(repr, names)) if names else "a file"
    cause, action = _CAUSES.get(error.errno, ("", ""))
    if cause:
        return f"{what} {cause}. {action}."
    reason = error.strerror or str(error) or type(error).__name__
    return f"the operating system refused {what}: {reason}. DBA_TRACEBACK=1 shows where."
