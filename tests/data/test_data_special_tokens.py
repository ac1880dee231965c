"""The record of a model's special tokens: what it adds, what it refuses, and its document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.tokenizers import load_tokenizer, special_of, with_special
from dba_core.errors import DataError, UsageError

IDS = np.array([7, 8], dtype=np.uint8)
BOTH = SpecialTokens(bos=300, eos=(301, 9), add_bos=True, add_eos=True)


def test_a_text_gets_what_the_tokenizer_adds() -> None:
    assert BOTH.around(IDS).tolist() == [300, 7, 8, 301]
    assert BOTH.start(IDS).tolist() == [300, 7, 8]
    assert BOTH.chosen(bos=False).around(IDS).tolist() == [7, 8, 301]
    assert BOTH.chosen(eos=False).around(IDS).tolist() == [300, 7, 8]
    assert SpecialTokens().around(IDS) is IDS
    assert SpecialTokens(bos=3).chosen(bos=True).start(IDS).tolist() == [3, 7, 8]
    assert SpecialTokens(bos=3, add_bos=True).around(IDS[:0]).tolist() == [3]


def test_what_the_model_has_not_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match="bos=: this model names no bos token"):
        SpecialTokens(eos=(1,)).chosen(bos=True)
    with pytest.raises(UsageError, match="eos=: this model names no eos token"):
        SpecialTokens(bos=1).chosen(eos=True)


def test_a_tokenizer_alone_has_none_and_is_not_changed() -> None:
    alone = load_tokenizer("bytes")
    assert alone.special == SpecialTokens()
    assert with_special(alone, BOTH).special == BOTH
    assert alone.special == SpecialTokens() == load_tokenizer("bytes").special
    assert alone.encode("a").tolist() == with_special(alone, BOTH).encode("a").tolist()


def test_the_document_is_read_back() -> None:
    made = SpecialTokens(
        bos=1,
        eos=(2, 5),
        add_bos=True,
        chat_template="{{ bos_token }}",
        names={"bos_token": "<s>", "pad_token": "<p>"},
    )
    document = made.to_document()
    assert document["eos_token_id"] == [2, 5]
    assert SpecialTokens.from_document(document, source="file") == made


def read(document: dict[str, Any], *before: int, after: tuple[int, ...] = ()) -> SpecialTokens:
    known = {"<s>": 10, "</s>": 11}
    return SpecialTokens.from_document(document, source="F", token_id=known.get, template=(before, after))


def test_hugging_faces_fields() -> None:
    found = read({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "eos_token_id": [12, 11], "x": 1}, 10)
    assert (found.bos, found.eos, found.add_bos, found.add_eos) == (10, (11, 12), True, False)
    assert found.names == {"bos_token": "<s>", "eos_token": "</s>"}
    assert read({"eos_token_id": 4}) == SpecialTokens(eos=(4,))
    assert read({"add_bos_token": False, "bos_token": "<s>"}, 10).add_bos is False
    assert read({}, 10, after=(11,)) == SpecialTokens(bos=10, eos=(11,), add_bos=True, add_eos=True)
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert read({"chat_template": several}).chat_template == "D"
    assert read({"chat_template": {"default": "D"}}).chat_template == "D"


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"bos_token": 5}, "bos_token is 5; allowed: the text of a token"),
        ({"bos_token_id": "1"}, "bos_token_id is '1'; allowed: a token number"),
        ({"eos_token_id": [1, -2]}, r"eos_token_id is \[1, -2\]"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; allowed: true or false"),
        ({"add_bos_token": True}, "says add_bos_token, and no bos token is known"),
        ({"chat_template": 5}, "chat_template is 5; allowed"),
    ],
)
def test_values_that_make_no_sense(document: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError, match=f"F.*{hint}"):
        read(document)


def test_more_than_one_token_on_a_side_is_refused() -> None:
    with pytest.raises(DataError, match=r"puts 2 tokens on one side of a text \(3, 4\)"):
        read({}, 3, 4)


def test_a_token_out_of_the_model_is_refused() -> None:
    BOTH.check(vocab_size=302, where="F")
    with pytest.raises(
        DataError, match="F: special token 301 is outside of the model's vocabulary, 0 to 300"
    ):
        BOTH.check(vocab_size=301, where="F")


def test_a_tokenizer_without_names_takes_the_numbers() -> None:
    found = special_of({"bos_token": "<s>", "bos_token_id": 1}, load_tokenizer("bytes"), source="F")
    assert (found.bos, found.add_bos) == (1, False)
