"""The plugin under test: built for one request after another, with a count of what it declined.

A check asks for what it needs with `for part in subject.built(request)`: one turn where the plugin supports
the request, none where it declines with reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from dba_core.contracts import AttentionShape, DecodeRequest, Kind, Request, Support
from dba_core.errors import UsageError
from dba_core.registry import LoadedPlugin, Registry
from dba_core.registry.contain import Failure, contain
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.plugin_loading import check_plugin, structure_options
from dba_core.registry.selection import answer_problem


@attrs.frozen(kw_only=True)
class Violation:
    """A promise that a plugin broke. case: the input; hint: where to look; check: filled in by the run."""

    case: str
    expected: str
    got: str
    hint: str
    check: str = ""

    def __str__(self) -> str:
        return f"{self.check} [{self.case}]: expected {self.expected}; got {self.got}. {self.hint}"


class BreachError(Exception):
    """A violation after which a check cannot go on."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


@attrs.define
class Tally:
    """What one check tried: cases that ran, and the reasons against the others."""

    cases: int = 0
    declined: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """A loaded plugin with its options. device: where tensors live; dtypes: what inputs are tried in."""

    loaded: LoadedPlugin
    options: Any
    device: str = "cpu"
    quick: bool = False
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    installed: bool = True
    tally: Tally = attrs.field(factory=Tally)

    @classmethod
    def of(
        cls,
        kind: Kind,
        plugin: Any,
        *,
        options: Mapping[str, Any] | None = None,
        registry: Registry | None = None,
        device: str = "cpu",
        quick: bool = False,
        dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16"),
    ) -> Subject:
        """plugin: an installed one's name, or the object that its hook returns.

        Raises PluginError for one that is missing or lacks the form of a plugin, ConfigError for options,
        UsageError for a device that this machine lacks.
        """
        reached = contain(lambda: torch.zeros(1, device=device))
        if isinstance(reached, Failure):
            raise UsageError(f"device {device!r} cannot be used here ({reached}); give cpu, cuda or cuda:N")
        if isinstance(plugin, str):
            loaded = (Registry.default() if registry is None else registry).load(kind, plugin)
        else:
            where = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
            stated = contain(lambda: plugin.name)
            name = stated if isinstance(stated, str) else "unnamed"
            info = PluginInfo(kind=kind, name=name, distribution="local", version="0", module=where)
            loaded = check_plugin(info, plugin)
        return cls(
            loaded=loaded,
            options=structure_options(loaded, dict(options or {})),
            device=device,
            quick=quick,
            dtypes=dtypes,
            installed=isinstance(plugin, str),
        )

    @property
    def kind(self) -> Kind:
        return self.loaded.info.kind

    def answer(self, request: object, options: Any = None) -> Support:
        """What `supports()` says. Raises BreachError where it raises or answers with something else."""
        chosen = self.options if options is None else options
        said: object = contain(lambda: self.loaded.plugin.supports(request, chosen))
        problem = answer_problem(said)
        if problem is None and isinstance(said, Support):
            return said
        raise BreachError(
            Violation(
                case=describe(request),
                expected="supports() answers with a Support",
                got=f"it {problem}",
                hint="Return Support.yes() or Support.no(Reason(...)); never raise to say no.",
            )
        )

    def built(self, request: object, options: Any = None) -> Iterator[Any]:
        """What the plugin builds for the request, once; nothing where it declines or builds None.

        Raises BreachError where `build()` raises for a request that `supports()` took.
        """
        answer = self.answer(request, options)
        if not answer.ok:
            self.tally.declined += 1
            self.tally.refused.update({str(reason) for reason in answer.reasons})
            return
        self.tally.cases += 1
        chosen = self.options if options is None else options
        torch.manual_seed(0)
        part = contain(lambda: self.loaded.plugin.build(request, chosen))
        if isinstance(part, Failure):
            raise BreachError(
                Violation(
                    case=describe(request),
                    expected="build() makes what supports() accepted",
                    got=f"it raised {part}",
                    hint="Let supports() decline what cannot be built, with a Reason.",
                )
            )
        if part is not None:
            yield part

    def random(self, *sizes: int, seed: int, dtype: str = "float64") -> torch.Tensor:
        """N(0,1), drawn in float64 on the CPU: the same numbers for every device and dtype."""
        made = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return made.to(device=self.device, dtype=torch_dtype(dtype))


def torch_dtype(name: str) -> torch.dtype:
    """`float32` -> torch.float32. Raises ValueError for a name that is no dtype."""
    dtypes = {
        "float64": torch.float64,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    if name not in dtypes:
        raise ValueError(f"unknown dtype {name!r}; allowed: {', '.join(dtypes)}")
    return dtypes[name]


def describe(request: object) -> str:
    """A request in one line, as a case of a report."""
    if not isinstance(request, Request):
        return str(request)
    shape = describe_shape(request.shape)
    if not isinstance(request, DecodeRequest):
        return f"{shape}, {request.dtype}, {request.device}"
    formats = "/".join(
        f"{each.format}@{each.qblock}" if each.qblock else each.format
        for each in (request.k_sem, request.k_geo, request.v)
    )
    null = ", null token" if request.has_null else ""
    return f"{shape}, {formats}, resid {request.residual_len}, {request.dtype}, {request.device}{null}"


def describe_shape(shape: AttentionShape) -> str:
    """H/G heads and widths of one shape."""
    return (
        f"H{shape.n_heads} G{shape.n_kv_heads} Ds{shape.sem_head_dim} Dg{shape.geo_head_dim} "
        f"Dv{shape.v_head_dim}"
    )
