"""The corpus `pydoc`: the Python language reference that ships inside CPython (`pydoc_data.topics`).

Real English and code, about 0.4 MB, no download. Its text depends on the Python version, so the corpus states
version, bytes and hash. Called by the corpus.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping

from dba_core.data.text_sources import KEY, TextSource
from dba_core.errors import DataError


def read_pydoc() -> TextSource:
    """The topics in the order of their names, each under its name as heading.

    Topics that other, longer topics repeat word for word ("if" is a part of "compound") are left out and
    listed: they would put held-out text into the training text.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise DataError(
            "this Python has no language reference inside (module 'pydoc_data' is missing; some "
            "distributions package it apart); give the path of a text file",
            path=KEY,
        ) from error
    repeated = repeated_topics(topics)
    texts = {
        name: f"{name}\n{'#' * len(name)}\n\n{topics[name]}"
        for name in sorted(topics)
        if name not in repeated
    }
    version = f"Python {platform.python_version()}"
    left_out = tuple(f"{name}: repeated in other topics" for name in sorted(repeated))
    return TextSource.join("pydoc", texts, left_out=left_out, version=version)


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
