"""The long-sequence path at evaluation, where exact attention is the rule.

A path is taken only where it was asked for, with any numbers, and with another summarizer than the layer's
own as long as that needs no trained weights.
"""

from __future__ import annotations

import attrs
import torch
from torch import nn

from dba_core.attention.entrance import Part, module_of
from dba_core.attention.long_sequence.plan import LongSequencePath
from dba_core.config.long_sequence import LongSequenceConfig, ResolvedLongSequence
from dba_core.contracts import AttentionShape, Reason, SummarizerRequest
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice

#: The summarizer of a layer that has none of its own: without weights, and what the learned ones start from.
WITHOUT_WEIGHTS = "mean"


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
    own: Part,
    trained: ResolvedLongSequence | None,
    shape: AttentionShape,
    device: torch.device,
    registry: Registry,
) -> LongSequencePath:
    """The path with this summarizer; None and `auto` are the layer's own, or `mean` without one.

    own, trained: the layer's summarizer and the configuration that it was trained with (None: not at all).
    The result names the summarizer, and its configuration has no threshold: who asks for the path gets it at
    any length. Raises UnsupportedError for a layout without a semantic path, for a summarizer with weights
    that the layer was not trained with, and for trained weights that do not fit `config.mem_block`.
    """
    if not shape.sem_head_dim:
        raise UnsupportedError(
            "this attention has no semantic keys, which memory tokens are made of; the long-sequence path "
            "needs model.attention.mode='decoupled'"
        )
    given, chosen = own.module, own.selection
    name = None if given is None else type(given).__name__ if chosen is None else chosen.name
    wanted = name or WITHOUT_WEIGHTS if summarizer in (None, "auto") else summarizer
    numbers = attrs.evolve(config, threshold=1).resolved(context=0, device=device.type)
    its_block = None if trained is None else trained.mem_block
    if given is None or wanted != name:
        made, selection = _built(PluginChoice(wanted), numbers, shape, device, registry)
        if made.state_dict():
            raise _untrained(wanted, name)
    elif chosen is None or its_block == numbers.mem_block:
        return LongSequencePath(numbers, given, name=wanted)
    else:  # the trained weights in a summarizer for blocks of another length
        made, selection = _built(chosen.choice(), numbers, shape, device, registry)
        weights = given.state_dict()
        there, here = ({key: x.shape for key, x in each.items()} for each in (weights, made.state_dict()))
        if there != here:
            raise UnsupportedError(
                f"the trained weights of summarizer {name!r} are for mem_block={its_block} and do not "
                f"fit mem_block={numbers.mem_block}; keep {its_block}, or choose {WITHOUT_WEIGHTS!r}"
            )
        made.load_state_dict(weights, assign=True)
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
        made = module_of(selection, selection.build())
    return made.to(device).eval(), selection


def _untrained(wanted: str, own: str | None) -> UnsupportedError:
    has = f"its own, {own!r}, or " if own is not None else ""
    reason = Reason(
        subject=f"summarizer {wanted!r}",
        got="a summarizer whose weights this model was not trained with",
        supported=f"{has}one without weights, such as {WITHOUT_WEIGHTS!r}",
        action=f"Choose one of these, or train a run with plugins.summarizer={wanted} whose context reaches "
        "model.train_long_seq.threshold.",
    )
    return UnsupportedError(f"summarizer {wanted!r} cannot be used at evaluation:", reasons=(reason,))
