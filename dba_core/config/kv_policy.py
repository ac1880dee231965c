"""The KV-cache policy: one atomic text for every setting of the cache.

    ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128

`ksem`, `kgeo` and `v` name a format and, for block formats, the block length `@qblock`; `resid` is the number
of newest tokens that are read in fp16. Called by the configuration, the cache and the command line.
"""

from __future__ import annotations

import attrs

from dba_core.errors import ConfigError, unknown
from dba_core.serialization.exact import OneText, exact, exact_types

FLOAT_FORMATS = ("fp32", "fp16", "bf16")
BLOCK_FORMATS = ("q8_0", "q4_0", "nf4")
FORMATS = FLOAT_FORMATS + BLOCK_FORMATS
DEFAULT_QBLOCK = 32
QBLOCKS = (8, 16, 32, 64, 128, 256)
MAX_RESIDUAL = 10**9 - 1
#: What other programs call the formats.
_OTHER_NAMES = {
    **dict.fromkeys(("q4", "int4", "4bit", "4", "q4_k", "q4_1", "fp4"), "q4_0"),
    **dict.fromkeys(("q8", "int8", "8bit", "8", "q8_k", "fp8"), "q8_0"),
    **dict.fromkeys(("f16", "half", "float16", "16", "fp16"), "fp16"),
    **dict.fromkeys(("f32", "float", "float32", "32", "fp32"), "fp32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
}
_FIELDS = ("ksem", "kgeo", "v", "resid")
_EXAMPLE = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"


@attrs.frozen(field_transformer=exact_types)
class TensorFormat:
    """How one cached tensor is stored: a format's name and the values per scale (0 for float formats)."""

    format: str
    qblock: int = 0

    def __attrs_post_init__(self) -> None:
        if self.format not in FORMATS:
            meant = _OTHER_NAMES.get(self.format.lower(), self.format)
            if meant in FORMATS:
                allowed = ", ".join(FORMATS)
                raise ConfigError(
                    f"unknown cache format {self.format!r}. Did you mean {meant!r}? Allowed: {allowed}"
                )
            raise ConfigError(unknown("cache format", self.format, FORMATS))
        if self.format in FLOAT_FORMATS and self.qblock != 0:
            raise ConfigError(
                f"{self.format}@{self.qblock}: {self.format} has no blocks; write {self.format}"
            )
        if self.format in BLOCK_FORMATS and self.qblock not in QBLOCKS:
            allowed = ", ".join(map(str, QBLOCKS))
            raise ConfigError(f"{self.format}@{self.qblock}: block length {self.qblock}; allowed: {allowed}")

    @classmethod
    def parse(cls, text: str) -> TensorFormat:
        """`q4_0@32`, `q4_0` (block of 32), `fp16`."""
        name, at, block = text.partition("@")
        name, block = name.strip(), block.strip()
        if not at:
            return cls(name, DEFAULT_QBLOCK if name in BLOCK_FORMATS else 0)
        if not _is_count(block) or int(block) == 0:
            raise ConfigError(
                f"{text!r}: the block length after '@' is {block!r}; write a number, as in q4_0@32"
            )
        return cls(name, int(block))

    @property
    def short(self) -> str:
        return f"{self.format}@{self.qblock}" if self.qblock else self.format


@attrs.frozen(kw_only=True, repr=False, field_transformer=exact_types)
class KVCachePolicy(OneText):
    """Every setting of the KV cache. Frozen: a policy is replaced as a whole, never in part."""

    k_sem: TensorFormat = TensorFormat("fp16")
    k_geo: TensorFormat = TensorFormat("fp16")
    v: TensorFormat = TensorFormat("fp16")
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
            if name not in _FIELDS:
                raise ConfigError(
                    f"KV policy {text!r}: {unknown('field', name, _FIELDS)} Example: {_EXAMPLE}"
                )
            if name in found:
                raise ConfigError(f"KV policy {text!r}: {name!r} is given twice. Example: {_EXAMPLE}")
            found[name] = value
        missing = [name for name in ("ksem", "kgeo", "v") if name not in found]
        if missing:
            raise ConfigError(
                f"KV policy {text!r} lacks {', '.join(missing)}: a policy sets the whole cache at once. "
                f"Example: {_EXAMPLE}"
            )
        try:
            return cls(
                k_sem=_format("ksem", found),
                k_geo=_format("kgeo", found),
                v=_format("v", found),
                residual=_count(found.get("resid", "0")),
            )
        except ConfigError as error:
            wrong = error.message.rstrip(".")
            raise ConfigError(f"KV policy {text!r}: {wrong}. Example: {_EXAMPLE}") from None

    @classmethod
    def not_one_text(cls, value: object) -> str:
        return (
            f'{value!r}: kv_policy is one atomic text such as "{_EXAMPLE}". '
            "Use --kv-policy for a unified configuration."
        )

    @property
    def short(self) -> str:
        """The text that `parse` reads back to an equal policy."""
        return f"ksem={self.k_sem.short},kgeo={self.k_geo.short},v={self.v.short},resid={self.residual}"


def _format(name: str, found: dict[str, str]) -> TensorFormat:
    """The format of one field; its error names the field."""
    try:
        return TensorFormat.parse(found[name])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from None


def _count(text: str) -> int:
    if not _is_count(text):
        raise ConfigError(f"resid={text!r} is no number of tokens; allowed: 0 to {MAX_RESIDUAL}")
    return int(text)


def _is_count(text: str) -> bool:
    """Plain digits, no more than MAX_RESIDUAL has."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_RESIDUAL))
