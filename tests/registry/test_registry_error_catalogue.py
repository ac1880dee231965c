"""Every error about plugins has the text that the error catalogue prints."""

from __future__ import annotations

import pytest
from error_cases import CASES, PAGE, ErrorCase, entry, page

HOW = "write the page with: PYTHONPATH=tests python tests/registry/error_cases.py"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_whole_text(case: ErrorCase) -> None:
    assert entry(case) in PAGE.read_text(encoding="utf-8"), HOW


def test_titles_are_unique() -> None:
    assert len({case.title for case in CASES}) == len(CASES)


def test_the_page_has_nothing_else() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), HOW
