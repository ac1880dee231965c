"""The KV-cache policy: one atomic text for every setting of the cache.

    ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128

`ksem`, `kgeo` and `v` name a format and, for block formats, the block length `@qblock`; `resid` is the number
of newest tokens that are read in fp16. Formats are plugins of the kind `kv_format`: their
names, block lengths and sizes are asked of the registry when a policy is made, never when this is imported.
"""

from __future__ import annotations

import functools
from typing import cast

import attrs

from dba_core.contracts import FormatFacts, KVFormatPlugin
from dba_core.errors import ConfigError, PluginError, unknown
from dba_core.registry import Registry
from dba_core.registry.contain import Failure, contain, shown
from dba_core.serialization.keys import OneText
from dba_core.serialization.values import exact, exact_types, inside

_KIND = "kv_format"
MAX_RESIDUAL = 10**9 - 1
_FIELDS = ("ksem", "kgeo", "v", "resid")
_EXAMPLE = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"


def installed_formats() -> dict[str, FormatFacts]:
    """Every format that can be used here, the most precise first. Imports their plugins, but no torch; one
    that is broken, or not allowed, is left out.
    """
    registry = Registry.default()
    usable = {}
    for info in registry.list(_KIND):
        name = info.qualified if info.problem is not None else info.name
        try:
            usable[name] = _facts(registry, name)
        except PluginError:
            continue
    return dict(sorted(usable.items(), key=lambda item: (-item[1].bits, item[1].round_trip_error, item[0])))


def format_facts(name: str) -> FormatFacts:
    """What one format costs and keeps. Raises ConfigError with the installed ones for a name that is none of
    them, PluginError with the reason for one that cannot be used.
    """
    return _facts(Registry.default(), name)


def check_formats(policy: KVCachePolicy, registry: Registry) -> None:
    """Raise PluginError where a format of the policy may not be used, or cannot."""
    for tensor in (policy.k_sem, policy.k_geo, policy.v):
        registry.load(_KIND, tensor.format)


@functools.lru_cache(maxsize=64)
def _facts(registry: Registry, name: str) -> FormatFacts:
    known = registry.list(_KIND)
    if not any(name in (info.name, info.qualified) for info in known):
        raise ConfigError(_unknown(name))
    loaded = registry.load(_KIND, name)
    facts = contain(lambda: cast("KVFormatPlugin", loaded.plugin).facts)
    if not isinstance(facts, FormatFacts):
        raised = isinstance(facts, Failure)
        found = f"reading them raised {facts}" if raised else f"they are {shown(facts)}"
        raise PluginError(
            f"{loaded.info.who} is broken: its facts are no FormatFacts ({found}). Choose another format."
        )
    return facts


def _unknown(name: str) -> str:
    """The error text, with the format that goes by that name elsewhere."""
    formats = installed_formats()
    for meant, facts in formats.items():
        if name.lower() in (meant, *facts.other_names):
            return f"unknown cache format {name!r}. Did you mean {meant!r}? Allowed: {', '.join(formats)}"
    return unknown("cache format", name, tuple(formats))


@attrs.frozen(field_transformer=exact_types)
class TensorFormat:
    """How one cached tensor is stored: a format's name and the values per scale (0 for float formats)."""

    format: str
    qblock: int = 0

    def __attrs_post_init__(self) -> None:
        qblocks = self.facts.qblocks
        if not qblocks and self.qblock != 0:
            raise ConfigError(
                f"{self.format}@{self.qblock}: {self.format} has no blocks; write {self.format}"
            )
        if qblocks and self.qblock not in qblocks:
            allowed = ", ".join(map(str, qblocks))
            raise ConfigError(f"{self.format}@{self.qblock}: block length {self.qblock}; allowed: {allowed}")

    @classmethod
    def parse(cls, text: str) -> TensorFormat:
        """`q4_0@32`, `q4_0` (the format's default block), `fp16`."""
        name, at, block = text.partition("@")
        name, block = name.strip(), block.strip()
        if not at:
            return cls(name, format_facts(name).default_qblock)
        if not _is_count(block) or int(block) == 0:
            raise ConfigError(
                f"{text!r}: the block length after '@' is {block!r}; write a number, as in q4_0@32"
            )
        return cls(name, int(block))

    @property
    def facts(self) -> FormatFacts:
        """Bits, sizes and limits of the format."""
        return format_facts(self.format)

    @property
    def short(self) -> str:
        return f"{self.format}@{self.qblock}" if self.qblock else self.format


@attrs.frozen(kw_only=True, repr=False, field_transformer=exact_types)
class KVCachePolicy(OneText):
    """Every setting of the KV cache. Frozen: a policy is replaced as a whole, never in part."""

    k_sem: TensorFormat = attrs.field(factory=lambda: TensorFormat("fp16"))
    k_geo: TensorFormat = attrs.field(factory=lambda: TensorFormat("fp16"))
    v: TensorFormat = attrs.field(factory=lambda: TensorFormat("fp16"))
    residual: int = 0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.residual <= MAX_RESIDUAL:
            raise ConfigError(f"resid={self.residual} is no number of tokens; allowed: 0 to {MAX_RESIDUAL}")

    def __repr__(self) -> str:
        return f"KVCachePolicy.parse({self.short!r})"

    @classmethod
    def parse(cls, text: str) -> KVCachePolicy:
        """Read `ksem=...,kgeo=...,v=...[,resid=N]`: any order, any spacing, each once, resid 0 if left out.

        Raises ConfigError that names the part that is wrong and shows an example.
        """
        exact(text, str)
        found: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name, value = name.strip(), value.strip()
            if not equals or not value:
                raise ConfigError(
                    f"{part.strip()!r} is not name=value in KV policy {text!r}. Example: {_EXAMPLE}"
                )
            if name not in _FIELDS or name in found:
                wrong = f"{name!r} is given twice." if name in found else unknown("field", name, _FIELDS)
                raise ConfigError(f"KV policy {text!r}: {wrong} Example: {_EXAMPLE}")
            found[name] = value
        missing = [name for name in _FIELDS[:3] if name not in found]
        if missing:
            raise ConfigError(
                f"KV policy {text!r} lacks {', '.join(missing)}: a policy sets the whole cache at once. "
                f"Example: {_EXAMPLE}"
            )
        try:
            k_sem, k_geo, v = (inside(name, TensorFormat.parse, found[name]) for name in _FIELDS[:3])
            return cls(k_sem=k_sem, k_geo=k_geo, v=v, residual=_count(found.get("resid", "0")))
        except ConfigError as error:
            wrong = str(error).rstrip(".")
            raise ConfigError(f"KV policy {text!r}: {wrong}. Example: {_EXAMPLE}") from None

    @classmethod
    def uniform(cls, text: str) -> KVCachePolicy:
        """One format (`fp32`, `q4_0@64`) for all three tensors, no residual window."""
        one = TensorFormat.parse(text)
        return cls(k_sem=one, k_geo=one, v=one)

    @classmethod
    def not_one_text(cls, value: object) -> str:
        return (
            f'{value!r}: kv_policy is one atomic text such as "{_EXAMPLE}". '
            "Use kv_policy= for a unified configuration."
        )

    @property
    def short(self) -> str:
        """The text that `parse` reads back to an equal policy."""
        return f"ksem={self.k_sem.short},kgeo={self.k_geo.short},v={self.v.short},resid={self.residual}"


def _count(text: str) -> int:
    if not _is_count(text):
        raise ConfigError(f"resid={text!r} is no number of tokens; allowed: 0 to {MAX_RESIDUAL}")
    return int(text)


def _is_count(text: str) -> bool:
    """Plain digits, no more than MAX_RESIDUAL has."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_RESIDUAL))
