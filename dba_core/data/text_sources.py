"""Read text: one file, or a folder of text files. Called by the corpus.

Nothing is changed on the way: bytes are decoded as strict UTF-8, line ends and byte-order marks stay. The
documents of a folder are joined by one empty line, in the order of their paths.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

import attrs

from dba_core.data.file_kinds import kind_of
from dba_core.errors import DataError, nearest

KEY = "data.source"
TEXT_SUFFIXES = (".md", ".rst", ".tex", ".text", ".txt")
SEPARATOR = "\n\n"
_LISTED = 5


@attrs.frozen
class Document:
    """One piece of a corpus. n_bytes: UTF-8 bytes of its text, or of its tokens in a token array."""

    name: str
    n_bytes: int


@attrs.frozen(kw_only=True)
class TextSource:
    """The text of a corpus and where it is from.

    left_out: what was there and is not part of the text, and why.
    version: of the source, where the text depends on one.
    """

    name: str
    text: str = attrs.field(repr=False)
    documents: tuple[Document, ...] = attrs.field(repr=False)
    left_out: tuple[str, ...] = ()
    version: str | None = None

    @classmethod
    def join(
        cls, name: str, texts: dict[str, str], *, left_out: tuple[str, ...] = (), version: str | None = None
    ) -> TextSource:
        """One text of several documents (name -> text), in the order given."""
        documents = tuple(Document(title, len(text.encode("utf-8"))) for title, text in texts.items())
        text = SEPARATOR.join(texts.values())
        return cls(name=name, text=text, documents=documents, left_out=left_out, version=version)

    @property
    def sha256(self) -> str:
        """Of the UTF-8 text; for a single file that of the file."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode("utf-8"))


def require_path(text: str) -> Path:
    """The path, which exists; else DataError with the nearest names in its folder."""
    address = re.match(r"(https?|ftp|s3|gs|hf)://", text)
    if address:
        raise DataError(
            f"{text!r} is an address, and DBA downloads nothing; fetch it first, for example with "
            f"curl -L -o corpus.txt {shlex.quote(text)}, and give the path of that file",
            path=KEY,
        )
    path = Path(text)
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise DataError(
            f"no file or folder {text!r}, nor its folder {str(path.parent)!r}; give the path of a text file, "
            "a folder of text files, a .npy or .bin token array, or 'pydoc'",
            path=KEY,
        )
    close = nearest(path.name, ["pydoc", *sorted(entry.name for entry in path.parent.iterdir())])
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise DataError(
        f"no file or folder {text!r}. {hint}Allowed: the path of a text file, a folder of text files, "
        "a .npy or .bin token array, or 'pydoc'",
        path=KEY,
    )


def read_bytes(path: Path) -> bytes:
    """The content of a file; DataError when it cannot be read or is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}", path=KEY) from error
    if not data:
        raise DataError(f"the file {str(path)!r} is empty; give a file with text", path=KEY)
    return data


def why_binary(data: bytes) -> str | None:
    """What makes these bytes no UTF-8 text, with its position; None for text."""
    nul = data.find(b"\0")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if nul < 0 or error.start < nul:
            return f"byte 0x{data[error.start]:02x} at position {error.start} is no UTF-8"
    return f"NUL byte at position {nul}" if nul >= 0 else None


def read_text_file(path: Path) -> TextSource:
    """One text file as one document."""
    data = read_bytes(path)
    kind = kind_of(data)
    reason = why_binary(data)
    if kind and (reason or kind.words == "a PDF"):
        raise DataError(f"{str(path)!r} is {kind.words}, no UTF-8 text. {kind.action}", path=KEY)
    if reason:
        raise DataError(
            f"{str(path)!r} is no UTF-8 text: {reason}. Convert it to UTF-8 (iconv -f ENCODING -t UTF-8); "
            "token arrays must end in .npy or .bin",
            path=KEY,
        )
    return TextSource.join(path.name, {path.name: data.decode("utf-8")})


def read_folder(folder: Path) -> TextSource:
    """Every text file under the folder, hidden ones excepted, sorted by path; each is a document."""
    texts: dict[str, str] = {}
    left_out: list[str] = []
    binary: list[str] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in TEXT_SUFFIXES:
            left_out.append(f"{name}: not one of {' '.join(TEXT_SUFFIXES)}")
        elif path.stat().st_size == 0:
            left_out.append(f"{name}: empty")
        else:
            data = read_bytes(path)
            reason = why_binary(data)
            if reason:
                kind = kind_of(data)
                binary.append(f"{name} ({kind.words if kind else reason})")
            else:
                texts[name] = data.decode("utf-8")
    if binary:
        raise DataError(
            f"{len(binary)} file(s) in {str(folder)!r} are named like text but are no UTF-8 text: "
            f"{_some(binary)}. Convert or remove them",
            path=KEY,
        )
    if not texts:
        found = f"it holds {_some(left_out)}" if left_out else "it is empty"
        raise DataError(
            f"no text in the folder {str(folder)!r}: {found}. "
            f"Allowed: files that end in {' '.join(TEXT_SUFFIXES)}",
            path=KEY,
        )
    return TextSource.join(folder.resolve().name, texts, left_out=tuple(left_out))


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
