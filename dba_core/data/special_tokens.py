"""The special tokens of a model: what begins and ends its texts, and the template of its chats.

    text that is evaluated     [bos] tokens [eos]      as far as the model's tokenizer adds them
    prompt that is continued   [bos] tokens
    chat                       what the template renders; nothing is added

They belong to a pretrained model, not to a vocabulary: a run that was trained here has none. A converted
model's are in the file SPECIAL_FILE of its folder, under the names that Hugging Face has for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from dba_core.documents import read_object
from dba_core.errors import DataError, UsageError

SPECIAL_FILE = "tokenizer_config.json"
_ADVICE = "Take the file from the model again, or leave the entry out"
_Ids = npt.NDArray[np.integer[Any]]


@attrs.frozen(kw_only=True)
class SpecialTokens:
    """bos: the token that begins a text. eos: the tokens that end one, the one that `add_eos` adds first.
    add_bos, add_eos: whether the model's tokenizer adds them. chat_template: of Jinja. names: the texts of
    special tokens by the names that a template has for them (`bos_token`, `eos_token`, `pad_token` ...).
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    chat_template: str | None = None
    names: Mapping[str, str] = attrs.field(factory=dict)

    def start(self, ids: _Ids) -> _Ids:
        """A prompt as the model reads it: [n] -> [n] or [n + 1], `bos` before it where it is added."""
        return ids if self.bos is None or not self.add_bos else np.concatenate([_one(self.bos), ids])

    def around(self, ids: _Ids) -> _Ids:
        """A text as the model reads it: `bos` before it and `eos` after it, where they are added."""
        begun = self.start(ids)
        return np.concatenate([begun, _one(self.eos[0])]) if self.add_eos and self.eos else begun

    def chosen(self, *, bos: bool | None = None, eos: bool | None = None) -> SpecialTokens:
        """The same with `add_bos` and `add_eos` as told; None leaves them. Raises UsageError for one that the
        model does not have.
        """
        for wanted, there, what in ((bos, self.bos is not None, "bos"), (eos, bool(self.eos), "eos")):
            if wanted and not there:
                raise UsageError(f"{what}=: this model names no {what} token; leave {what}= out")
        return attrs.evolve(
            self,
            add_bos=self.add_bos if bos is None else bos,
            add_eos=self.add_eos if eos is None else eos,
        )

    def check(self, *, vocab_size: int, where: str) -> None:
        """Raise DataError for a special token that a model of this vocabulary cannot have."""
        for token in (*([] if self.bos is None else [self.bos]), *self.eos):
            if token >= vocab_size:
                raise DataError(
                    f"{where}: special token {token} is outside of the model's vocabulary, 0 to "
                    f"{vocab_size - 1}; the tokenizer and the model do not belong together. Give the model's "
                    "own tokenizer files",
                    path="data.tokenizer",
                )

    def to_document(self) -> dict[str, Any]:
        """JSON for SPECIAL_FILE, in Hugging Face's names; `from_document` reads it back."""
        document = {
            **self.names,
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "bos_token_id": self.bos,
            "eos_token_id": list(self.eos) or None,
            "chat_template": self.chat_template,
        }
        return {name: value for name, value in document.items() if value is not None}

    @classmethod
    def from_document(
        cls,
        document: Mapping[str, Any],
        *,
        source: str,
        token_id: Callable[[str], int | None] = lambda text: None,
        template: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    ) -> SpecialTokens:
        """Read the fields `*_token`, `bos_token_id`, `eos_token_id` (one or a list), `add_bos_token`,
        `add_eos_token`, `chat_template`; others are left alone.

        token_id: of the text of a special token. template: the tokens that the tokenizer's own post-processor
        puts before and after a text; it decides where the document says nothing of `add_*_token`, as in
        transformers. Raises DataError, which names `source`, for a value of another type.
        """
        names = _names(document, source)
        ids = {name: token_id(text) for name, text in names.items()}
        (bos, add_bos), (eos, add_eos) = (
            _side(name, own, ids.get(f"{name}_token"), document, source)
            for name, own in zip(("bos", "eos"), template, strict=True)
        )
        return cls(
            bos=bos[0] if bos else None,
            eos=eos,
            add_bos=add_bos,
            add_eos=add_eos,
            chat_template=_chat_template(document, source),
            names=names,
        )


def read_special_document(folder: Path) -> dict[str, Any] | None:
    """What SPECIAL_FILE of a run's folder holds; None where there is none."""
    path = folder / SPECIAL_FILE
    return read_object(path, error=DataError, advice=_ADVICE) if path.is_file() else None


def _one(token: int) -> _Ids:
    """[1], of the smallest type that holds it."""
    return np.array([token], np.min_scalar_type(token))


def _wrong(document: Mapping[str, Any], name: str, source: str, allowed: str) -> DataError:
    return DataError(f"{source}: {name} is {document[name]!r:.80}; allowed: {allowed}. {_ADVICE}")


def _names(document: Mapping[str, Any], source: str) -> dict[str, str]:
    """The texts of `*_token`, each a text or an object with `content`; null is none."""
    names = {}
    for name, value in document.items():
        if not name.endswith("_token") or value is None or isinstance(value, bool):
            continue
        text = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            raise _wrong(document, name, source, "the text of a token")
        names[name] = text
    return names


def _side(
    name: str, own: tuple[int, ...], named: int | None, document: Mapping[str, Any], source: str
) -> tuple[tuple[int, ...], bool]:
    """The tokens at one side of a text, "bos" or "eos", the one that is added first, and whether it is.

    own: the post-processor's. named: the token of the text that the document gives.
    """
    if len(own) > 1:
        raise DataError(
            f"{source}: the post-processor of the tokenizer puts {len(own)} tokens on one side of a text "
            f"({', '.join(map(str, own))}); supported: one at the start and one at the end. Edit "
            "post_processor in tokenizer.json"
        )
    adds, numbers = document.get(f"add_{name}_token"), document.get(f"{name}_token_id")
    if not isinstance(adds, bool | None):
        raise _wrong(document, f"add_{name}_token", source, "true or false")
    listed = numbers if isinstance(numbers, list | tuple) else [numbers]
    if numbers is not None and not all(type(each) is int and 0 <= each < 1 << 32 for each in listed):
        raise _wrong(document, f"{name}_token_id", source, "a token number from 0 on, or a list of them")
    tokens = tuple(dict.fromkeys(each for each in (*own, named, *listed) if each is not None))
    if adds and not tokens:
        raise DataError(
            f"{source} says add_{name}_token, and no {name} token is known: neither {name}_token_id, nor a "
            f"{name}_token that the tokenizer has. Add one, or set add_{name}_token to false"
        )
    return tokens, bool(own) if adds is None else adds


def _chat_template(document: Mapping[str, Any], source: str) -> str | None:
    """One template, or the one called `default` of several: a list of {name, template}, or an object."""
    value = document.get("chat_template")
    if isinstance(value, str | None):
        return value
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        value = {str(each.get("name")): each.get("template") for each in value}
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(text, str) for text in value.values())
    ):
        raise _wrong(
            document, "chat_template", source, "the text of a Jinja template, or several of them by name"
        )
    template: str | None = value.get("default")
    return template
