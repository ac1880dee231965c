"""Texts for a corpus: a file, a folder of text files, or what every CPython brings along.

Nothing is changed on the way: bytes are decoded as strict UTF-8, line ends and byte-order marks stay. Files
of a folder come in the order of their paths.

    pydoc        the language reference inside CPython (`pydoc_data.topics`): English and code, about 0.4 MB
    docstrings   the documentation strings of the standard library, read without running it: about 2 MB

The texts of both depend on the Python version, which the corpus states.
"""

from __future__ import annotations

import ast
import importlib
import os
import platform
import re
import shlex
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from dba_core.errors import DataError, did_you_mean

TEXT_SUFFIXES = (".md", ".rst", ".tex", ".text", ".txt")
_LISTED = 5
#: Folders of the standard library that hold no documentation of it, or other distributions.
_NOT_DOCUMENTED = ("site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data")
_LEAST = 40  # characters: shorter documentation strings say little
_FORMS = "the path of a text file, a folder of text files, a .npy or .bin token array, or 'pydoc'"
_UNPACK = "Unpack it, and give the text file or the folder of texts in it"
_EXTRACT = "Extract its text first, and give the text file"
_NO_TEXT = "Give a file with text"
_PDF = b"%PDF-"
#: First bytes, what such a file is, what to do. Longer beginnings first where one holds the other.
_KINDS = (
    (_PDF, "a PDF", f"{_EXTRACT} (pdftotext)"),
    (b"{\\rtf", "an RTF document", f"{_EXTRACT} (save it as plain text)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", f"{_EXTRACT} (save it as plain text)"),
    (b"PK\x03\x04", "a zip archive (or a document, such as .docx or .epub, that is one)", _UNPACK),
    (b"\x1f\x8b", "gzip-compressed", f"{_UNPACK} (gunzip)"),
    (b"BZh", "bzip2-compressed", f"{_UNPACK} (bunzip2)"),
    (b"\xfd7zXZ\x00", "xz-compressed", f"{_UNPACK} (unxz)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", f"{_UNPACK} (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89PNG", "a PNG image", _NO_TEXT),
    (b"\xff\xd8\xff", "a JPEG image", _NO_TEXT),
    (b"GIF8", "a GIF image", _NO_TEXT),
    (b"RIFF", "a media file (RIFF: WebP, WAV or AVI)", _NO_TEXT),
    (b"OggS", "a media file (Ogg)", _NO_TEXT),
    (b"ID3", "a media file (MP3)", _NO_TEXT),
    (b"\x7fELF", "a program", _NO_TEXT),
    (b"MZ\x90", "a program", _NO_TEXT),
    (b"SQLite format 3", "an SQLite database", _EXTRACT),
    (b"PAR1", "a Parquet table", f"{_EXTRACT} (its text column)"),
    (b"ARROW1", "an Arrow table", f"{_EXTRACT} (its text column)"),
    (b"\x89HDF", "an HDF5 file", _EXTRACT),
    (b"\x93NUMPY", "a numpy array", "Name it .npy, and it is read as tokens"),
    (b"GGUF", "a GGUF model", "It is a model to convert; give a file with text"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "Convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text", "Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)


@attrs.frozen(kw_only=True)
class Texts:
    """texts: documents by name. left_out: what was not used, and why. version: that they are of."""

    name: str
    texts: dict[str, str] = attrs.field(repr=False)
    left_out: tuple[str, ...] = ()
    version: str | None = None


def bad_source(message: str) -> DataError:
    """The error for a corpus that cannot be read."""
    return DataError(message, path="data.source")


def read_pydoc() -> Texts:
    """The topics in the order of their names, each under its name as heading.

    Topics that other, longer topics repeat word for word ("if" is a part of "compound") are left out and
    listed: they would put held-out text into the training text.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise bad_source(
            "this Python has no language reference inside (module 'pydoc_data' is missing; some "
            "distributions package it apart); give the path of a text file"
        ) from error
    repeated = repeated_topics(topics)
    return Texts(
        name="pydoc",
        texts={name: f"{name}\n{'#' * len(name)}\n\n{topics[name]}" for name in sorted({*topics} - repeated)},
        left_out=tuple(f"{name}: repeated in other topics" for name in sorted(repeated)),
        version=f"Python {platform.python_version()}",
    )


def repeated_topics(topics: Mapping[str, str]) -> set[str]:
    """The topics whose every paragraph but the title stands in longer topics too (of two equal ones, one)."""
    by_length = sorted(topics, key=lambda name: (len(topics[name]), name), reverse=True)
    seen: set[str] = set()
    repeated: set[str] = set()
    for name in by_length:
        paragraphs = {" ".join(part.split()) for part in topics[name].split("\n\n")} - {""}
        body = {part for part in paragraphs if part.rstrip("*=-~") == part}  # without underlined titles
        if body and body <= seen:
            repeated.add(name)
        seen |= paragraphs
    return repeated


def read_docstrings() -> Texts:
    """One document per source file, in the order of their paths; strings that repeat are taken once."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if any(part in _NOT_DOCUMENTED for part in name.parts):
            continue
        strings = [text for text in _strings(path) if len(text) >= _LEAST and text not in seen]
        seen.update(strings)
        if strings:
            texts[name.as_posix()] = "\n\n".join(dict.fromkeys(strings))
    if not texts:
        raise bad_source(
            f"this Python has no source files of its standard library in {root}; give a text file's path"
        )
    return Texts(name="docstrings", texts=texts, version=f"Python {platform.python_version()}")


def _strings(path: Path) -> list[str]:
    """The documentation strings of a file in the order of its lines; none for one that is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return [text for text in found if text]


#: Texts that every CPython brings along, by the name that `data.source` has for them.
INSTALLED: dict[str, Callable[[], Texts]] = {"pydoc": read_pydoc, "docstrings": read_docstrings}


def read_texts(source: str) -> Texts:
    """The texts of an installed source, a folder or a file. Raises DataError for what is none."""
    if source in INSTALLED:
        return INSTALLED[source]()
    path = require_path(source)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def require_path(text: str) -> Path:
    """The path, which exists; else DataError with the nearest names in its folder."""
    if re.match(r"(https?|ftp|s3|gs|hf)://", text):
        raise bad_source(
            f"{text!r} is an address, and DBA downloads nothing; fetch it first, for example with "
            f"curl -L -o corpus.txt {shlex.quote(text)}, and give the path of that file"
        )
    path = Path(text)
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise bad_source(f"no file or folder {text!r}, nor its folder {str(path.parent)!r}; give {_FORMS}")
    hint = did_you_mean(path.name, ["pydoc", *sorted(entry.name for entry in path.parent.iterdir())])
    raise bad_source(f"no file or folder {text!r}. {hint}Allowed: {_FORMS}")


def _read_file(path: Path) -> Texts:
    """One text file as one document."""
    data = _content(path)
    if not data:
        raise bad_source(f"the file {str(path)!r} is empty; give a file with text")
    kind, reason = _kind_of(data), _why_binary(data)
    if kind and (reason or data.startswith(_PDF)):
        raise bad_source(f"{str(path)!r} is {kind[0]}, no UTF-8 text. {kind[1]}")
    if reason:
        raise bad_source(
            f"{str(path)!r} is no UTF-8 text: {reason}. Convert it to UTF-8 (iconv -f ENCODING -t UTF-8); "
            "token arrays must end in .npy or .bin"
        )
    return Texts(name=path.name, texts={path.name: data.decode("utf-8")})


def _read_folder(folder: Path) -> Texts:
    """Every text file under the folder, hidden ones excepted, sorted by path; each is a document."""
    texts: dict[str, str] = {}
    left_out: list[str] = []
    binary: list[str] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in TEXT_SUFFIXES:
            left_out.append(f"{name}: not one of {' '.join(TEXT_SUFFIXES)}")
        elif not (data := _content(path)):
            left_out.append(f"{name}: empty")
        elif reason := _why_binary(data):
            kind = _kind_of(data)
            binary.append(f"{name} ({kind[0] if kind else reason})")
        else:
            texts[name] = data.decode("utf-8")
    if binary:
        raise bad_source(
            f"{len(binary)} file(s) in {str(folder)!r} are named like text but are no UTF-8 text: "
            f"{_some(binary)}. Convert or remove them"
        )
    if not texts:
        found = f"it holds {_some(left_out)}" if left_out else "it is empty"
        raise bad_source(
            f"no text in the folder {str(folder)!r}: {found}. "
            f"Allowed: files that end in {' '.join(TEXT_SUFFIXES)}"
        )
    return Texts(name=folder.resolve().name, texts=texts, left_out=tuple(left_out))


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise bad_source(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _kind_of(data: bytes) -> tuple[str, str] | None:
    """What a file is in words and the next step, where its first bytes are a well-known kind's."""
    return next(((words, action) for first, words, action in _KINDS if data.startswith(first)), None)


def _why_binary(data: bytes) -> str | None:
    """What makes these bytes no UTF-8 text, with its position; None for text."""
    nul = data.find(b"\0")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if nul < 0 or error.start < nul:
            return f"byte 0x{data[error.start]:02x} at position {error.start} is no UTF-8"
    return f"NUL byte at position {nul}" if nul >= 0 else None
