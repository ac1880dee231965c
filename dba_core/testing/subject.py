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
from dba_core.registry.contain import Failure, contain, shown
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.plugin_loading import check_plugin, structure_options
from dba_core.registry.selection import answer_problem

#: What inputs are tried in.
DTYPES = ("float32", "float16", "bfloat16")


@attrs.frozen
class Violation:
    """A promise that a plugin broke. case: the input; hint: where to look, "" for the check's own words about
    it; check: filled in by the run.
    """

    case: str = attrs.field(converter=str)
    expected: str
    got: str
    hint: str = ""
    check: str = ""

    def __str__(self) -> str:
        return f"{self.check} [{self.case}]: expected {self.expected}; got {self.got}. {self.hint}"


class BreachError(Exception):
    """A violation after which a check cannot go on."""

    def __init__(self, case: object, expected: str, got: str, hint: str) -> None:
        self.violation = Violation(case, expected, got, hint)
        super().__init__(str(self.violation))


def told(outcome: object) -> str:
    """What foreign code gave back, or raised, in the `got` of a violation."""
    return f"it raised {outcome}" if isinstance(outcome, Failure) else shown(outcome)


@attrs.define
class Tally:
    """What one check tried: cases that ran, and the reasons against the others."""

    cases: int = 0
    declined: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """A loaded plugin with its options. device: where tensors live; installed: it has metadata."""

    loaded: LoadedPlugin
    options: Any
    device: str
    quick: bool
    installed: bool
    tally: Tally = attrs.field(factory=Tally)

    @classmethod
    def of(
        cls,
        kind: Kind,
        plugin: Any,
        *,
        options: Mapping[str, Any],
        registry: Registry,
        device: str,
        quick: bool,
    ) -> Subject:
        """plugin: an installed one's name, or the object that its hook returns.

        Raises PluginError for one that is missing or lacks the form of a plugin, ConfigError for options,
        UsageError for a device that this machine lacks.
        """
        reached = contain(lambda: torch.zeros(1, device=device))
        if isinstance(reached, Failure):
            raise UsageError(f"device {device!r} cannot be used here ({reached}); give cpu, cuda or cuda:N")
        if isinstance(plugin, str):
            loaded = registry.load(kind, plugin)
        else:
            loaded = check_plugin(PluginInfo.of_object(kind, plugin), plugin)
        return cls(
            loaded=loaded,
            options=structure_options(loaded, options),
            device=device,
            quick=quick,
            installed=isinstance(plugin, str),
        )

    @property
    def kind(self) -> Kind:
        return self.loaded.info.kind

    @property
    def module(self) -> str:
        """The plugin's module, by name."""
        return self.loaded.info.module.partition(":")[0]

    def answer(self, request: object) -> Support:
        """What `supports()` says. Raises BreachError where it raises or answers with something else."""
        said: object = contain(lambda: self.loaded.plugin.supports(request, self.options))
        problem = answer_problem(said)
        if problem is None and isinstance(said, Support):
            return said
        raise BreachError(
            describe(request),
            "supports() answers with a Support",
            f"it {problem}",
            "Return Support.yes() or Support.no(Reason(...)); never raise to say no.",
        )

    def built(self, request: object) -> Iterator[Any]:
        """What the plugin builds for the request, once; nothing where it declines or builds None.

        Raises BreachError where `build()` raises for a request that `supports()` took.
        """
        answer = self.answer(request)
        if not answer.ok:
            self.tally.declined += 1
            self.tally.refused.update({str(reason) for reason in answer.reasons})
            return
        self.tally.cases += 1
        torch.manual_seed(0)
        part = contain(lambda: self.loaded.plugin.build(request, self.options))
        if isinstance(part, Failure):
            hint = "Let supports() decline what cannot be built, with a Reason."
            raise BreachError(describe(request), "build() makes what supports() accepted", told(part), hint)
        if part is not None:
            yield part

    def random(self, *sizes: int, seed: int, dtype: str = "float64") -> torch.Tensor:
        """N(0,1), drawn in float64 on the CPU: the same numbers for every device and dtype."""
        made = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return made.to(device=self.device, dtype=torch_dtype(dtype))


def torch_dtype(name: str) -> torch.dtype:
    """`float32` -> torch.float32."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def describe(request: object) -> str:
    """A request in one line, as a case of a report."""
    if not isinstance(request, Request):
        return str(request)
    shape = request.shape
    text = (
        f"H{shape.n_heads} G{shape.n_kv_heads} Ds{shape.sem_head_dim} Dg{shape.geo_head_dim} "
        f"Dv{shape.v_head_dim}"
    )
    if not isinstance(request, DecodeRequest):
        return f"{text}, {request.dtype}, {request.device}"
    formats = "/".join(
        f"{each.format}@{each.qblock}" if each.qblock else each.format
        for each in (request.k_sem, request.k_geo, request.v)
    )
    null = ", null token" if request.has_null else ""
    return f"{text}, {formats}, resid {request.residual_len}, {request.dtype}, {request.device}{null}"


def shape_of(
    heads: int,
    kv_heads: int,
    sem: int = 4,
    geo: int = 4,
    v: int = 4,
    *,
    d_model: int = 8,
    sem_heads: int = 0,
    v_heads: int = 0,
) -> AttentionShape:
    """Query heads, KV heads and widths; of k_sem and v fewer heads where they are given."""
    return AttentionShape(
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=kv_heads,
        sem_head_dim=sem,
        geo_head_dim=geo,
        v_head_dim=v,
        sem_kv_heads=sem_heads or kv_heads,
        v_kv_heads=v_heads or kv_heads,
    )
