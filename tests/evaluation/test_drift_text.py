"""Which stretches of a text are compared: equally long, apart, within it; what is said where none fit."""

from __future__ import annotations

import itertools

import pytest

from dba_core.errors import DataError
from dba_plugins.drift.text import choose_stretches


def test_left_out_it_takes_up_to_four_stretches_of_the_preferred_length() -> None:
    chosen = choose_stretches(1000, length=None, documents=None, preferred_length=100)
    assert (chosen.length, chosen.offsets) == (100, (0, 299, 598, 897))
    assert chosen.offsets[-1] + 100 + 1 <= 1000
    two = choose_stretches(250, length=None, documents=None, preferred_length=100)
    assert (two.length, two.offsets) == (100, (0, 149))
    short = choose_stretches(60, length=None, documents=None, preferred_length=100)
    assert (short.length, short.offsets) == (59, (0,))


def test_a_number_of_documents_makes_them_shorter_but_not_a_length_that_was_given() -> None:
    chosen = choose_stretches(101, length=None, documents=5, preferred_length=50)
    assert (chosen.length, chosen.offsets) == (20, (0, 20, 40, 60, 80))
    with pytest.raises(
        DataError, match=r"5 documents of 50 positions need 251 tokens.*has 101.* at most 20,"
    ):
        choose_stretches(101, length=50, documents=5, preferred_length=50)
    with pytest.raises(DataError, match=r"length of at most 100, for at most 1 documents"):
        choose_stretches(101, length=101, documents=None, preferred_length=50)
    with pytest.raises(DataError, match=r"200 documents of 1 positions"):
        choose_stretches(101, length=None, documents=200, preferred_length=50)


@pytest.mark.parametrize("n_tokens", [2, 3, 50, 101, 777])
@pytest.mark.parametrize("documents", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 7, 16])
def test_stretches_lie_apart_and_within_the_text(n_tokens: int, documents: int, length: int) -> None:
    if documents * length > n_tokens - 1:
        with pytest.raises(DataError, match="documents"):
            choose_stretches(n_tokens, length=length, documents=documents, preferred_length=1)
        return
    chosen = choose_stretches(n_tokens, length=length, documents=documents, preferred_length=1)
    assert len(chosen.offsets) == documents
    assert chosen.offsets[0] == 0
    assert all(after - before >= length for before, after in itertools.pairwise(chosen.offsets))
    assert chosen.offsets[-1] + length + 1 <= n_tokens


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_a_text_without_a_target_is_refused(n_tokens: int) -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        choose_stretches(n_tokens, length=None, documents=None, preferred_length=8)
