"""Prompts as `generate` takes them: token lists or integer tensors of any lengths, checked one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from dba_core.config.model import ModelConfig
from dba_core.errors import DataError, LongPromptWarning

#: One row per prompt. A tensor is [B, T], or one [T] for each prompt; arrays of NumPy likewise.
Prompts: TypeAlias = Sequence[Sequence[int] | Tensor] | Tensor

_PATH = "generation.prompt"
_EXAMPLE = "give a list of prompts, each a list of tokens, as in [[72, 105]]"
_TEXT = (
    "the model takes tokens: call run.generate(text) on what load_run returns, or encode it, as in "
    "[tokenizer.encode(text).tolist()]"
)


def checked_prompts(prompts: object, config: ModelConfig) -> list[list[int]]:
    """The prompts as lists of plain integers inside the vocabulary, none of them empty.

    Raises DataError that names the prompt, the position and what stands there. Warns of a prompt that is
    longer than the model's context.
    """
    if isinstance(prompts, (str, bytes)):
        raise DataError(f"prompts={prompts[:40]!r} is a text, and {_TEXT}", path=_PATH)
    rows = _items(prompts)
    if rows is None:
        raise DataError(f"prompts is {_what(prompts)}; {_EXAMPLE}", path=_PATH)
    lists = [_checked(row, prompt, config) for row, prompt in enumerate(rows)]
    for row, tokens in enumerate(lists):
        if len(tokens) > config.context:
            warnings.warn(
                f"prompt {row} has {len(tokens)} tokens, more than the context of {config.context} that the "
                "model was trained with; what follows is outside of what it has learned",
                LongPromptWarning,
                stacklevel=3,
            )
    return lists


def _checked(row: int, prompt: object, config: ModelConfig) -> list[int]:
    if isinstance(prompt, (str, bytes)):
        raise DataError(f"prompt {row} is the text {prompt[:40]!r}, and {_TEXT}", path=_PATH)
    values = _items(prompt)
    if values is None:
        raise DataError(f"prompt {row} is {_what(prompt)}; {_EXAMPLE}", path=_PATH)
    if not values:
        raise DataError(f"prompt {row} is empty; give at least one token, a line end say", path=_PATH)
    return _tokens(row, values, config)


def _tokens(row: int, values: Sequence[object], config: ModelConfig) -> list[int]:
    vocab_size = config.vocab_size
    assert vocab_size is not None
    tokens = []
    for position, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise DataError(
                f"prompt {row} holds {_what(value)} at position {position}; tokens are whole numbers, 0 to "
                f"{vocab_size - 1}",
                path=_PATH,
            )
        if not 0 <= value < vocab_size:
            raise DataError(
                f"prompt {row} holds token {value} at position {position}; allowed: 0 to {vocab_size - 1}, "
                "the model's vocabulary",
                path=_PATH,
            )
        tokens.append(int(value))
    return tokens


def _items(value: object) -> list[object] | None:
    """What a list, tuple, range, array or tensor holds; None for anything else, numbers and sets say."""
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim == 0:
            return None
        return list(value) if value.ndim > 1 else value.tolist()
    return list(value) if isinstance(value, Sequence) else None


def _what(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    if isinstance(value, Iterable):
        return f"a {type(value).__name__}"
    return f"{value!r} ({type(value).__name__})"
