"""The plugin-made parts of an attention layer: how each is chosen and built, and where what it returns enters
the attention: it is looked at there, and what it raises gets its name.

Form (type, shape, dtype, device) is looked at in every call, in compiled code too. Values (finite, a gate in
[0,1]) are looked at when a part is called for the first time, and in every call after `check_every_call`:
that waits for the device. Nothing is looked at inside a captured CUDA graph, nor values in compiled code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dba_core.attention.inputs import autocast_enabled
from dba_core.contracts import (
    AttentionShape,
    DecodeBackend,
    Kind,
    NullKV,
    Request,
    Summarizer,
    TokenWriter,
)
from dba_core.errors import PluginError
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice
from dba_core.registry.contain import blame, shown

#: How far a gate may be outside of [0,1] by rounding.
_ROUNDING = 1e-3


class Part:
    """One gate, null token or summarizer of a layer. module: None adds nothing. selection: how it was chosen;
    None: it was given.
    """

    def __init__(self, kind: Kind, module: nn.Module | None, selection: Selection | None) -> None:
        self.every_call = False
        self.kind, self.module, self.selection = kind, module, selection
        self._seen: nn.Module | None = None

    @classmethod
    def built(
        cls,
        kind: Kind,
        given: str | PluginChoice | nn.Module,
        request: Request,
        registry: Registry,
        *,
        reached: bool = True,
    ) -> Part:
        """The part that `given` names, built for `request`; a module is taken as it is.

        It is chosen in any case, so that a wrong name is an error at once, and built where it can be reached:
        parameters that no step would use are not made. It is built on a random stream of its own, so that
        what one plugin draws changes nothing for the next one.
        """
        if isinstance(given, nn.Module):
            return cls(kind, given, None)
        selection = registry.select(kind, given, request)
        if not reached:
            return cls(kind, None, selection)
        seed = int(torch.randint(2**62, (), device="cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built: object = selection.build()
        if built is None and kind != "summarizer":
            return cls(kind, None, selection)
        return cls(kind, module_of(selection, built), selection)

    def gate(self, part: nn.Module, x: Tensor, *, n_heads: int) -> Tensor:
        """part(x [B,T,d_model]) -> [B,H,T,1]. Raises PluginError for anything else, and outside of [0,1]."""
        gate = self._call(part, x)
        wanted = (x.shape[0], n_heads, x.shape[1], 1)
        self._check_form(part, "gate", gate, wanted, device=x.device)
        if self._looks(part, x) and gate.numel():
            low, high = torch.stack(torch.aminmax(gate.detach())).tolist()
            if not (low >= -_ROUNDING and high <= 1 + _ROUNDING) and finite(x):
                raise self._wrong(part, f"returned a gate with values from {low:.4g} to {high:.4g}", "0 to 1")
            self._seen = part
        return cast("Tensor", gate)

    def null(self, part: nn.Module, *, shape: AttentionShape, device: torch.device) -> NullKV:
        """part() -> the null key and value of every KV head. Raises PluginError for another form or a NaN."""
        null = self._call(part)
        if not isinstance(null, NullKV):
            raise self._wrong(part, f"returned {shown(null)}", "a NullKV")
        named = {"k_sem": null.k_sem, "k_geo": null.k_geo, "v": null.v}
        widths = shape.sem_head_dim, shape.geo_head_dim, shape.v_head_dim
        for (name, tensor), width in zip(named.items(), widths, strict=True):
            self._check_form(part, name, tensor, (shape.n_kv_heads, width), device=device)
        if self._looks(part, null.v):
            self._check_finite(part, named, given=())
        return null

    def summarizer(self, part: nn.Module, selection: Selection | None) -> Summarizer:
        """The part as it is called, its result looked at. selection: of another one than the layer's own."""
        if selection is not None and part is not self.module:
            other = Part(self.kind, part, selection)
            other.every_call = self.every_call
            return other.summarizer(part, None)
        return functools.partial(self._summaries, part)

    def _summaries(self, part: nn.Module, k_sem: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k_sem [B,G,N,L,Ds], v [B,G,N,L,Dv] -> [B,G,N,Ds], [B,G,N,Dv]."""
        made = self._call(part, k_sem, v)
        if not isinstance(made, tuple) or len(made) != 2:
            raise self._wrong(part, f"returned {kind_of(made)}", "a tuple of two tensors")
        named = {"memory keys": made[0], "memory values": made[1]}
        dtype = None if autocast_enabled(v.device) else v.dtype
        for (name, tensor), x in zip(named.items(), (k_sem, v), strict=True):
            shape = (*x.shape[:3], x.shape[-1])
            self._check_form(part, name, tensor, shape, device=v.device, dtype=dtype)
        if self._looks(part, v):
            self._check_finite(part, named, given=(k_sem, v))
        return made

    def _call(self, part: nn.Module, *inputs: Tensor) -> Any:
        if torch.compiler.is_compiling():
            return part(*inputs)
        done = False
        try:
            made = part(*inputs)
            done = True
        finally:
            if not done:
                blame(self._who(part))
        return made

    def _looks(self, part: nn.Module, like: Tensor) -> bool:
        """Whether the values are looked at in this call. Compiled code does not depend on what was seen."""
        if torch.compiler.is_compiling() or (self._seen is part and not self.every_call):
            return False
        return may_wait(like)

    def _check_form(
        self,
        part: nn.Module,
        name: str,
        tensor: object,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        problem = form_problem(tensor, shape, device=device, dtype=dtype)
        if problem is not None:
            raise self._wrong(part, f"returned {name} {problem[0]}", problem[1])

    def _check_finite(self, part: nn.Module, named: Mapping[str, Tensor], *, given: Sequence[Tensor]) -> None:
        bad = [name for name, tensor in named.items() if not finite(tensor)]
        if bad and all(map(finite, given)):
            raise self._wrong(
                part, f"returned {' and '.join(bad)} with a NaN or an infinity", "finite numbers"
            )
        self._seen = part

    def _who(self, part: nn.Module) -> str:
        if self.selection is not None and part is self.module:
            return self.selection.who
        return f"{self.kind} {type(part).__name__}, given as an object,"

    def _wrong(self, part: nn.Module, what: str, allowed: str) -> PluginError:
        return wrong(self._who(part), what, allowed)


def module_of(selection: Selection, built: object) -> nn.Module:
    """What the plugin built. Raises PluginError for what is no module."""
    if isinstance(built, nn.Module):
        return built
    adds_nothing = "" if selection.kind == "summarizer" else ", or None to add nothing"
    raise wrong(selection.who, f"built {shown(built)}", f"a torch.nn.Module{adds_nothing}")


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


def form_problem(
    tensor: object, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype | None
) -> tuple[str, str] | None:
    """(what it is, what is allowed) where it is no tensor of this form. dtype None: any floating-point."""
    if not isinstance(tensor, Tensor):
        return f"that is {kind_of(tensor)}", f"a tensor of shape {list(shape)}"
    if tensor.shape != shape:
        return f"of shape {list(tensor.shape)}", f"{list(shape)}"
    if tensor.dtype != dtype and (dtype is not None or not tensor.is_floating_point()):
        return f"in {tensor.dtype}", "a floating-point dtype" if dtype is None else f"{dtype}"
    if tensor.device != device:
        return f"on {tensor.device}", f"{device}"
    return None


def wrong(who: str, what: str, allowed: str) -> PluginError:
    """What is raised about a plugin's result."""
    return PluginError(
        f"{who} {what}; allowed: {allowed}. Choose another {who.partition(' ')[0]} or report it to the "
        "plugin's author."
    )


def kind_of(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def may_wait(like: Tensor) -> bool:
    """Whether values can be read now: there are some, and they are not only being recorded."""
    if like.device.type == "meta":
        return False
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


def finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
