"""A corpus that is no text: the error says what the file is and what to do with it."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dba_core.config.run import DataConfig
from dba_core.data.corpus import check_source, load_corpus
from dba_core.errors import DataError


def written(folder: Path, name: str) -> Path:
    """A real file of the kind that its name says."""
    path = folder / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "text")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(b"text"))
    elif path.suffix == ".png":
        from matplotlib.image import imsave

        imsave(path, np.zeros((2, 2)))
    elif path.suffix == ".pdf":
        path.write_bytes(b"%PDF-1.4\n1 0 obj << >> endobj\n" * 99)  # all of it ASCII
    elif path.suffix == ".txt":
        path.write_bytes("größer".encode("utf-16"))
    else:
        with path.open("wb") as file:
            np.save(file, np.arange(9))
    return path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.zip", ["a zip archive", "Unpack it"]),
        ("a.gz", ["gzip-compressed", "gunzip"]),
        ("a.png", ["a PNG image", "Give a file with text"]),
        ("a.pdf", ["a PDF", "pdftotext"]),
        ("a.txt", ["UTF-16 text", "iconv -f UTF-16"]),
        ("a.array", ["a numpy array", ".npy"]),
    ],
)
def test_what_a_file_is_and_what_to_do(tmp_path: Path, name: str, told: list[str]) -> None:
    path = written(tmp_path, name)
    with pytest.raises(DataError) as caught:
        load_corpus(DataConfig(source=str(path)), context=1)
    assert all(part in str(caught.value) for part in [str(path), *told])


def test_text_that_begins_like_a_file_of_another_kind_is_text(tmp_path: Path) -> None:
    for name, text in (
        ("gif", "GIF89 is a format. "),
        ("bz", "BZh! "),
        ("rar", "Rar! "),
        ("mp3", "ID3 tags. "),
    ):
        path = tmp_path / f"{name}.txt"
        path.write_text(text * 40)
        assert load_corpus(DataConfig(source=str(path)), context=1).n_bytes == len(text) * 40


def test_in_a_folder_each_file_is_named_with_its_kind(tmp_path: Path) -> None:
    written(tmp_path, "a.zip").rename(tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"b\.txt \(a zip archive"):
        load_corpus(DataConfig(source=str(tmp_path)), context=1)


@pytest.mark.parametrize("address", ["https://example.org/a.txt", "http://a/b", "s3://bucket/a", "hf://a/b"])
def test_an_address_is_not_downloaded(address: str) -> None:
    with pytest.raises(DataError, match="downloads nothing"):
        check_source(address)
    with pytest.raises(DataError, match="downloads nothing"):
        load_corpus(DataConfig(source=address), context=1)


def test_a_source_that_is_there_passes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for source in ("pydoc", "docstrings", str(tmp_path), str(tmp_path / "a.txt")):
        check_source(source)
