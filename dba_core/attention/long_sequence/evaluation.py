"""The long-sequence path at evaluation, where exact attention is the rule.

A path is taken only where it was asked for, with any numbers, and with another summarizer than the layer's
own as long as that needs no trained weights.
"""

from __future__ import annotations

import attrs
import torch
from torch import nn

from dba_core.attention.long_sequence.plan import LongSequencePath
from dba_core.attention.parts import built_module
from dba_core.config.long_sequence import LongSequenceConfig, ResolvedLongSequence
from dba_core.contracts import AttentionShape, Reason, SummarizerRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice

#: The summarizer of a layer that has none of its own: without weights, and what the learned ones start from.
WITHOUT_WEIGHTS = "mean"


@attrs.frozen(eq=False)
class OwnSummarizer:
    """What a layer was built with: its module (None: it has none), how that was chosen (None: it was given),
    and the layer's configuration (None: it has no long-sequence path in training).
    """

    module: nn.Module | None
    selection: Selection | None
    config: ResolvedLongSequence | None

    @property
    def name(self) -> str | None:
        """The plugin's name; the class's for a module that was given; None without a module."""
        if self.module is None:
            return None
        return type(self.module).__name__ if self.selection is None else self.selection.name

    @property
    def mem_block(self) -> int | None:
        return None if self.config is None else self.config.mem_block


@attrs.frozen(kw_only=True)
class UsedLongSequence:
    """What a model uses at evaluation. config: with every number, and no threshold. summarizer: its name;
    with their layers where these have different ones.
    """

    config: ResolvedLongSequence
    summarizer: str


def evaluation_path(
    config: LongSequenceConfig,
    *,
    summarizer: str | None,
    own: OwnSummarizer,
    shape: AttentionShape,
    device: torch.device,
    registry: Registry,
) -> LongSequencePath:
    """The path with this summarizer; None and `auto` are the layer's own, or `mean` without one.

    The result names it, and its configuration has no threshold: who asks for the path gets it at any length.
    Raises UnsupportedError for a layout without a semantic path, for a summarizer with weights that the layer
    was not trained with, and for trained weights that do not fit `config.mem_block`.
    """
    if not shape.sem_head_dim:
        raise UnsupportedError(
            "this attention has no semantic keys, which memory tokens are made of; the long-sequence path "
            "needs model.attention.mode='decoupled'"
        )
    wanted = own.name or WITHOUT_WEIGHTS if summarizer in (None, "auto") else summarizer
    numbers = attrs.evolve(config, threshold=1).resolved(context=0, device=device.type)
    if own.module is not None and wanted == own.name:
        if own.selection is None or own.mem_block == numbers.mem_block:
            return LongSequencePath(numbers, own.module, name=wanted)
        made, selection = _built(own.selection.choice(), numbers, shape, device, registry)
        return LongSequencePath(numbers, _with_weights(made, own, numbers), selection, wanted)
    made, selection = _built(PluginChoice(wanted), numbers, shape, device, registry)
    if made.state_dict():
        raise _untrained(wanted, own)
    return LongSequencePath(numbers, made, selection, wanted)


def _built(
    choice: PluginChoice,
    config: ResolvedLongSequence,
    shape: AttentionShape,
    device: torch.device,
    registry: Registry,
) -> tuple[nn.Module, Selection]:
    """A fresh summarizer for `config.mem_block`, and how it was chosen."""
    request = SummarizerRequest(shape=shape, mem_block=config.mem_block, device=device.type)
    selection = registry.select("summarizer", choice, request)
    with torch.random.fork_rng(devices=[]):  # whatever it draws is replaced or refused
        made = built_module(selection)
    assert made is not None
    return made.to(device).eval(), selection


def _with_weights(made: nn.Module, own: OwnSummarizer, config: ResolvedLongSequence) -> nn.Module:
    """`made` with the layer's trained weights, which belong to blocks of another length."""
    assert own.module is not None
    weights = own.module.state_dict()
    there, here = ({key: tuple(x.shape) for key, x in each.items()} for each in (weights, made.state_dict()))
    if there != here:
        raise UnsupportedError(
            f"the trained weights of summarizer {own.name!r} are for mem_block={own.mem_block} and do not "
            f"fit mem_block={config.mem_block}; keep {own.mem_block}, or choose {WITHOUT_WEIGHTS!r}"
        )
    made.load_state_dict(weights, assign=True)
    return made


def _untrained(wanted: str, own: OwnSummarizer) -> UnsupportedError:
    has = f"its own, {own.name!r}, or " if own.name is not None else ""
    reason = Reason(
        subject=f"summarizer {wanted!r}",
        got="a summarizer whose weights this model was not trained with",
        supported=f"{has}one without weights, such as {WITHOUT_WEIGHTS!r}",
        action=f"Choose one of these, or train a run with plugins.summarizer={wanted} whose context reaches "
        "model.train_long_seq.threshold.",
    )
    return UnsupportedError(f"summarizer {wanted!r} cannot be used at evaluation:", reasons=(reason,))
