"""Small tokenizer.json documents of every model that the package has, and ways to damage them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WRONG = [
    *(None, True, -1, 0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 10**30, 1.5, 1e308),
    *("", "x", "\0", "\ud800", "(", "[a-", [], {}, [None], [[[]]], {"type": "BPE"}, {"type": "Sequence"}),
]


def byte_level(*, merges: bool = True) -> Tokenizer:
    """One token per byte, and `th`, `the`; then `<s>` and `</s>`."""
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = [("t", "h"), ("th", "e")] if merges else []
    vocab |= {first + second: len(vocab) + number for number, (first, second) in enumerate(pairs)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def adding(made: Tokenizer, template: str) -> Tokenizer:
    """The same with a post-processor such as `<s> $A </s>`."""
    numbers = [(text, made.token_to_id(text)) for text in ("<s>", "</s>") if text in template.split()]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbers)
    return made


def documents() -> list[dict[str, Any]]:
    byte = adding(byte_level(), "<s> $A </s>")
    byte.enable_truncation(10)
    byte.enable_padding()
    letters = [("<unk>", 0.0), ("▁the", -1.0), ("t", -2.0), ("h", -2.0), ("e", -2.0), ("▁", -3.0)]
    unigram = Tokenizer(models.Unigram(letters, unk_id=0))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "e")])
    pieces = {"[UNK]": 0, "the": 1, "##e": 2, "t": 3, "##h": 4}
    wordpiece = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    wordpiece.pre_tokenizer, wordpiece.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    wordpiece.post_processor = processors.BertProcessing(("the", 1), ("t", 3))
    words = Tokenizer(models.WordLevel({"the": 0, "t": 1}, unk_token="t"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return [json.loads(made.to_str()) for made in (byte, unigram, wordpiece, words)]


def damaged(draw: random.Random, document: dict[str, Any]) -> bytes:
    """A file with one to four values removed or replaced; now and then cut off, or with wrong bytes."""
    made = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = [path for path in _places(made) if path]
        outer = [path for path in places if len(path) <= 3 and path[1:2] != ("vocab",)]
        path = draw.choice(outer if outer and draw.random() < 0.7 else places)
        holder = made
        for key in path[:-1]:
            holder = holder[key]
        if draw.random() < 0.3:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(draw.choice(WRONG))
        if not made:
            break
    data = bytearray(json.dumps(made).encode())
    if draw.random() < 0.1:
        del data[draw.randrange(len(data)) :]
    elif draw.random() < 0.1:
        for _ in range(draw.choice([1, 5, 30])):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _places(each, (*path, key))
