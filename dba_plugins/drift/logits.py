"""How far the long-sequence path is from exact attention, on one set of weights and the same tokens.

    hidden = blocks(tokens)    once with exact attention, once per setting; whole: [1, T, d_model]
    logits = head(hidden)      of both, in slices of positions: never [T, V] at once

Drift is what the approximation alone does: both passes run in the weights' own dtype, without autocast. A
setting under which every query reads every token at full resolution is exact attention, so its drift is
exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from torch import Tensor

from dba_core.attention.long_sequence.evaluation import UsedLongSequence
from dba_core.attention.long_sequence.plan import LongSequencePlan, plan_of
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.data.tokenizers import Tokens
from dba_core.evaluation.metrics import FidelityAccumulator
from dba_core.model.language_model import inference

if TYPE_CHECKING:
    from dba_core.model.language_model import LanguageModel

#: Logits of one model that exist at a time: 16 MiB in float32.
SLICE_LOGITS = 1 << 22


@attrs.frozen
class Approximation:
    """One way to approximate. summarizer: a plugin's name; None is the model's own."""

    config: LongSequenceConfig
    summarizer: str | None = None


@attrs.frozen(kw_only=True, eq=False)
class SettingDrift:
    """What one setting does to each document. used: the setting in numbers; plan: of one document."""

    used: UsedLongSequence
    plan: LongSequencePlan
    documents: tuple[FidelityAccumulator, ...]

    @property
    def total(self) -> FidelityAccumulator:
        """All documents together."""
        merged = FidelityAccumulator()
        for document in self.documents:
            merged.merge(document)
        return merged


def measure_drift(
    model: LanguageModel,
    documents: Sequence[Tokens],
    settings: Sequence[Approximation],
    *,
    slice_tokens: int | None = None,
    on_pass: Callable[[], None] | None = None,
) -> list[SettingDrift]:
    """Compare every setting with exact attention on every document; one exact pass serves all settings.

    documents: token arrays of one length T + 1 (inputs and shifted targets). slice_tokens: positions whose
    logits exist at a time. on_pass: called after each pass through the model,
    `len(documents) * (1 + len(settings))` times. Raises UnsupportedError for a setting that this model cannot
    run, before anything is computed.
    """
    used = [resolved_setting(model, setting) for setting in settings]
    length = len(documents[0]) - 1
    rows = slice_tokens or max(1, SLICE_LOGITS // model.tok_emb.num_embeddings)
    found: list[list[FidelityAccumulator]] = [[] for _ in used]
    done = on_pass or (lambda: None)
    with inference(model):
        for document in documents:
            x, y = _pair(document, model.device)
            exact = model.hidden(x)  # [1, T, d_model]
            done()
            for setting, accumulators in zip(settings, found, strict=True):
                with model.long_sequence(setting.config, summarizer=setting.summarizer):
                    approximate = model.hidden(x)
                accumulators.append(_compared(model, exact, approximate, y, rows))
                done()
    return [
        SettingDrift(used=each, plan=plan_of(each.config, length), documents=tuple(accumulators))
        for each, accumulators in zip(used, found, strict=True)
    ]


def resolved_setting(model: LanguageModel, setting: Approximation) -> UsedLongSequence:
    """The setting with every number and the summarizer's name; UnsupportedError where it cannot run."""
    with model.long_sequence(setting.config, summarizer=setting.summarizer) as used:
        return used


def keys_per_query(plan: LongSequencePlan) -> float:
    """Keys that a query reads on average: memory tokens and full-resolution tokens, itself included."""
    keys = sum(
        chunk.rows * (chunk.n_mem + chunk.older) + chunk.rows * (chunk.rows + 1) // 2 for chunk in plan.chunks
    )
    return keys / plan.length


def _pair(document: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [1, T]."""
    tokens = torch.from_numpy(np.asarray(document).astype(np.int64)).to(device)[None]  # [1, T + 1]
    return tokens[:, :-1], tokens[:, 1:]


def _compared(
    model: LanguageModel, exact: Tensor, approximate: Tensor, targets: Tensor, rows: int
) -> FidelityAccumulator:
    """exact, approximate [1, T, d_model], targets [1, T]; logits of `rows` positions at a time."""
    accumulator = FidelityAccumulator()
    for start in range(0, targets.shape[1], rows):
        span = slice(start, start + rows)
        reference, logits = model.logits(exact[:, span]), model.logits(approximate[:, span])  # [1, rows, V]
        positions = torch.arange(start, start + logits.shape[1])
        accumulator.update(reference, logits, targets[:, span], positions=positions)
    return accumulator
