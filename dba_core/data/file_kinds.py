"""What a file is by its first bytes, where it is a well-known kind that holds no plain text.

Called by the readers of text, for an error that says what was given and what to do with it.
"""

from __future__ import annotations

import attrs

_UNPACK = "Unpack it, and give the text file or the folder of texts in it"
_EXTRACT = "Extract its text first, and give the text file"
_NO_TEXT = "Give a file with text"


@attrs.frozen
class FileKind:
    """What the file is, in words, and the next step."""

    words: str
    action: str


#: First bytes -> kind. Longer beginnings first where one holds the other.
_KINDS: tuple[tuple[bytes, FileKind], ...] = (
    (b"%PDF-", FileKind("a PDF", f"{_EXTRACT} (pdftotext)")),
    (b"{\\rtf", FileKind("an RTF document", f"{_EXTRACT} (save it as plain text)")),
    (b"\xd0\xcf\x11\xe0", FileKind("an old Office document", f"{_EXTRACT} (save it as plain text)")),
    (b"PK\x03\x04", FileKind("a zip archive (or a document, such as .docx or .epub, that is one)", _UNPACK)),
    (b"\x1f\x8b", FileKind("gzip-compressed", f"{_UNPACK} (gunzip)")),
    (b"BZh", FileKind("bzip2-compressed", f"{_UNPACK} (bunzip2)")),
    (b"\xfd7zXZ\x00", FileKind("xz-compressed", f"{_UNPACK} (unxz)")),
    (b"\x28\xb5\x2f\xfd", FileKind("zstd-compressed", f"{_UNPACK} (unzstd)")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!", FileKind("a rar archive", _UNPACK)),
    (b"\x89PNG", FileKind("a PNG image", _NO_TEXT)),
    (b"\xff\xd8\xff", FileKind("a JPEG image", _NO_TEXT)),
    (b"GIF8", FileKind("a GIF image", _NO_TEXT)),
    (b"RIFF", FileKind("a media file (RIFF: WebP, WAV or AVI)", _NO_TEXT)),
    (b"OggS", FileKind("a media file (Ogg)", _NO_TEXT)),
    (b"ID3", FileKind("a media file (MP3)", _NO_TEXT)),
    (b"\x7fELF", FileKind("a program", _NO_TEXT)),
    (b"MZ\x90", FileKind("a program", _NO_TEXT)),
    (b"SQLite format 3", FileKind("an SQLite database", _EXTRACT)),
    (b"PAR1", FileKind("a Parquet table", f"{_EXTRACT} (its text column)")),
    (b"ARROW1", FileKind("an Arrow table", f"{_EXTRACT} (its text column)")),
    (b"\x89HDF", FileKind("an HDF5 file", _EXTRACT)),
    (b"\x93NUMPY", FileKind("a numpy array", "Name it .npy, and it is read as tokens")),
    (b"GGUF", FileKind("a GGUF model", "It is for `dba convert`; give a file with text")),
    (b"\xff\xfe\x00\x00", FileKind("UTF-32 text", "Convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)")),
    (b"\x00\x00\xfe\xff", FileKind("UTF-32 text", "Convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)")),
    (b"\xff\xfe", FileKind("UTF-16 text", "Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")),
    (b"\xfe\xff", FileKind("UTF-16 text", "Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")),
)


def kind_of(data: bytes) -> FileKind | None:
    """The kind that the first bytes tell, None for anything else."""
    for beginning, kind in _KINDS:
        if data.startswith(beginning):
            return kind
    return None
