"""The plugin-made parts of an attention layer: gate, null token, summarizer.

Each is given as a name, a `PluginChoice` or a built module; the first two go through the registry, which
keeps why.
"""

from __future__ import annotations

import attrs
import torch
from torch import nn

from dba_core.attention.entrance import wrong
from dba_core.config.long_sequence import ResolvedLongSequence
from dba_core.contracts import AttentionShape, DecodeBackend, Kind, Request, SummarizerRequest, TokenWriter
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice
from dba_core.registry.contain import shown


@attrs.frozen(kw_only=True, eq=False)
class ChosenModule:
    """The module (None: the plugin adds nothing) and how it was chosen (None: it was given)."""

    module: nn.Module | None
    selection: Selection | None = None


def build_part(
    kind: Kind, given: str | PluginChoice | nn.Module, request: Request, registry: Registry
) -> ChosenModule:
    """The part that `given` names, built for `request`; a module is taken as it is."""
    if isinstance(given, nn.Module):
        return ChosenModule(module=given)
    selection = registry.select(kind, given, request)
    return ChosenModule(module=_built(selection, optional=True), selection=selection)


def build_summarizer(
    given: str | PluginChoice | nn.Module,
    config: ResolvedLongSequence,
    *,
    shape: AttentionShape,
    context: int | None,
    device: str,
    registry: Registry,
) -> ChosenModule:
    """The summarizer of the long-sequence path.

    It is chosen in any case, so that a wrong name is an error at once, and built where the path can be
    reached: parameters that no step of a model of this context would use are not made.
    """
    if isinstance(given, nn.Module):
        return ChosenModule(module=given)
    request = SummarizerRequest(shape=shape, mem_block=config.mem_block, device=device)
    selection = registry.select("summarizer", given, request)
    reached = context is None or config.threshold <= context
    return ChosenModule(module=_built(selection) if reached else None, selection=selection)


def built_module(selection: Selection, *, optional: bool = False) -> nn.Module | None:
    """What the plugin builds. Raises PluginError for what is no module. optional: None adds nothing."""
    built: object = selection.build()
    if isinstance(built, nn.Module) or (optional and built is None):
        return built
    allowed = "a torch.nn.Module" + (", or None to add nothing" if optional else "")
    raise wrong(selection.who, f"built {shown(built)}", allowed)


def built_backend(selection: Selection) -> DecodeBackend:
    """What the plugin builds. Raises PluginError for what is no decode backend."""
    built: object = selection.build()
    if not isinstance(built, DecodeBackend) or not callable(built.decode):
        raise wrong(
            selection.who,
            f"built {shown(built)}",
            "a DecodeBackend, with name, fused_null, writer and decode()",
        )
    writer: object = built.writer
    if writer is not None and not isinstance(writer, TokenWriter):
        raise wrong(
            selection.who, f"built a backend whose writer is {shown(writer)}", "a TokenWriter or None"
        )
    return built


def _built(selection: Selection, *, optional: bool = False) -> nn.Module | None:
    """Built on a random stream of its own, so that what one plugin draws changes nothing for the next one."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built_module(selection, optional=optional)


def sizes_in_words(shape: AttentionShape) -> str:
    """`d_model=512, n_heads=8, ...`: the sizes of a layer; other head counts only where there are any."""
    sem_heads, _, v_heads = shape.cached_heads
    own = {"sem_kv_heads": sem_heads, "v_kv_heads": v_heads}
    sizes = {
        "d_model": shape.d_model,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        **{name: heads for name, heads in own.items() if heads != shape.n_kv_heads},
        "sem_head_dim": shape.sem_head_dim,
        "geo_head_dim": shape.geo_head_dim,
        "v_head_dim": shape.v_head_dim,
    }
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
