"""The optional tokenizers: missing extras, values against the packages themselves, no network."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest

from dba_core.data.tokenizers import TiktokenTokenizer, load_tokenizer
from dba_core.errors import DataError

TEXT = "the cat, the hat — été 😀\n  the end"


@pytest.mark.parametrize("package", ["tokenizers", "tiktoken"])
def test_a_missing_extra_is_named_with_its_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {}}')
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"python -m pip install .*\[{package}\]"):
        load_tokenizer(str(path) if package == "tokenizers" else "tiktoken:gpt2")


def byte_level_json(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_tokenizer_json_gives_what_the_package_gives(tmp_path: Path) -> None:
    path = byte_level_json(tmp_path)
    tokenizer = load_tokenizer(str(path))
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    ids = tokenizer.encode(TEXT)
    assert ids.tolist() == reference.encode(TEXT).ids
    assert len(ids) < len(TEXT.encode())  # merges happened
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.n_bytes(ids) == len(TEXT.encode())
    assert tokenizer.vocab_size == 270
    assert tokenizer.name == str(path)
    assert int(ids.max()) < tokenizer.vocab_size


def test_tokenizer_json_streams_whole_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level_json(tmp_path)))
    ids = tokenizer.encode(TEXT).tolist()
    for context in (0, 3):
        stream = tokenizer.stream(ids[:context])
        pieces = [stream.push([i]) for i in ids[context:]]
        assert not any("\ufffd" in piece for piece in pieces)
        assert tokenizer.decode(ids[:context]) + "".join(pieces) + stream.finish() == TEXT
        assert "" in pieces  # the emoji takes several tokens


def test_tokenizer_json_decodes_ids_that_it_does_not_have(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level_json(tmp_path)))
    assert tokenizer.decode([*tokenizer.encode("cat").tolist(), 100000]) == "cat"


def test_an_empty_tokenizer_json_is_refused(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(DataError, match="has an empty vocabulary"):
        load_tokenizer(str(path))


class FakeEncoding:
    """The calls of a tiktoken encoding that we use, over single bytes and "the" = 257; 256 is a hole."""

    n_vocab = 258

    def encode_ordinary(self, text: str) -> list[int]:
        head, *rest = text.encode().split(b"the")
        return [*head, *(token for part in rest for token in (257, *part))]

    def decode_single_token_bytes(self, token: int) -> bytes:
        if token == 256:
            raise KeyError(token)
        return b"the" if token == 257 else bytes((token,))


def fake_tiktoken(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    def get_encoding(name: str) -> FakeEncoding:
        if fails:
            raise ConnectionError("no route to host")
        return FakeEncoding()

    package = types.SimpleNamespace(
        list_encoding_names=lambda: ["gpt2", "o200k_base"], get_encoding=get_encoding
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: package)


def test_tiktoken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tiktoken(monkeypatch)
    tokenizer = load_tokenizer("tiktoken:gpt2")
    ids = tokenizer.encode("a theé")
    assert ids.tolist() == [97, 32, 257, 0xC3, 0xA9]
    assert tokenizer.decode(ids) == "a theé"
    assert tokenizer.decode([97, 256, 98]) == "a\ufffdb"
    assert (tokenizer.name, tokenizer.vocab_size) == ("tiktoken:gpt2", 258)
    assert tokenizer.n_bytes(ids) == len("a theé".encode())
    stream = tokenizer.stream(ids[:4].tolist())
    assert stream.push([0xA9]) == "é"


def test_tiktoken_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tiktoken(monkeypatch)
    with pytest.raises(DataError, match=r"unknown tiktoken encoding 'gpt3'. Did you mean 'gpt2'\?"):
        load_tokenizer("tiktoken:gpt3")


def test_tiktoken_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tiktoken(monkeypatch, fails=True)
    with pytest.raises(
        DataError, match=r"could not fetch the encoding 'gpt2' \(ConnectionError: no route to host\)"
    ):
        load_tokenizer("tiktoken:gpt2")


def test_tiktoken_itself_has_the_calls_that_the_fake_has() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes((i,)): i for i in range(256)} | {b"th": 256, b"the": 257}
    encoding = tiktoken.Encoding(
        "tiny",
        pat_str=r"\w+|\W+",
        mergeable_ranks=ranks,
        special_tokens={"<end>": 259},
        explicit_n_vocab=None,
    )
    tokenizer = TiktokenTokenizer(encoding, name="tiktoken:tiny")
    ids = tokenizer.encode(TEXT)
    assert ids.tolist() == encoding.encode_ordinary(TEXT)
    assert 257 in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.n_bytes(ids) == len(TEXT.encode())
    assert tokenizer.decode([258]) == "\ufffd"  # a hole
    assert "gpt2" in tiktoken.list_encoding_names()
