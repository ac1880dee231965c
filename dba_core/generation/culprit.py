"""Whose fault it is that the logits are not finite: a weight's, a plugin's, or neither's.

Called by generation.loop when it has happened: the weights are looked at, then the same tokens go through the
model once more while everything that plugins return is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dba_core.errors import CacheError, CheckpointError, DBAError
from dba_core.model.finite import check_finite

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel


def look_for_culprit(model: LanguageModel, error: DBAError, *, again: Callable[[], object]) -> None:
    """Raise what is to blame for `error`: CheckpointError for a weight, PluginError for a plugin. Returns
    where all weights are finite and no plugin does it again.

    again: repeats the step that failed, from the start and on a cache of its own.
    """
    try:
        for name, tensor in model.state_dict().items():
            check_finite(tensor, name=name, where="the model")
    except CheckpointError as damaged:
        raise CheckpointError(f"{error} {damaged}") from error
    with plugins_watched(model), contextlib.suppress(CacheError):
        again()


def unexplained(model: LanguageModel, error: DBAError) -> DBAError:
    """What is said about logits that are not finite although weights and plugins' results are."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return DBAError(
        f"{error} Every weight is finite, and so was what the plugins returned when the step was repeated: "
        f"the model's own arithmetic in {dtype} exceeds its range, or the fault does not repeat. Run it in "
        "float32, or with other plugins (--plugin decode_backend=streaming)."
    )


@contextlib.contextmanager
def plugins_watched(model: LanguageModel) -> Iterator[None]:
    """Within: what plugins return is looked at in every call."""
    before = [attention.check_every_call() for attention in model.attentions]
    try:
        yield
    finally:
        for attention, wanted in zip(model.attentions, before, strict=True):
            attention.check_every_call(wanted)
