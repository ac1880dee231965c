"""Validators for the attrs classes: an error names the value, what is allowed and the field as its path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import attrs

from dba_core.errors import ConfigError, nearest, unknown
from dba_core.printable import no_text

Validator = Callable[[Any, Any, Any], None]

#: What torch calls the accelerators that no part here is written for.
_OTHER_GPUS = ("mps", "metal", "xpu", "rocm", "hip", "tpu", "xla", "npu", "vulkan", "directml", "mtia")
#: The largest seed that torch's generators and numpy's take alike.
MAX_SEED = 2**63 - 1


def at_least(low: float) -> Validator:
    """The value is finite and >= `low`."""
    return _limit(
        lambda value: low <= value < math.inf,
        lambda value: f"{value} is too small; allowed: at least {low:g}",
    )


def between(low: float, high: float, *, open_high: bool = False) -> Validator:
    """low <= value <= high (or < high with `open_high`)."""
    bound = f"{low} <= value {'<' if open_high else '<='} {high}"
    return _limit(
        lambda value: low <= value < high if open_high else low <= value <= high,
        lambda value: f"{value} is out of range; allowed: {bound}",
    )


def positive() -> Validator:
    """The value is finite and > 0."""
    return _limit(
        lambda value: 0 < value < math.inf,
        lambda value: f"{value} is not positive; allowed: any number above 0",
    )


def among(*allowed: int) -> Validator:
    """The value is one of these whole numbers."""
    return _limit(
        lambda value: value in allowed,
        lambda value: f"{value!r} is not possible; allowed: {', '.join(map(str, allowed))}",
    )


def _limit(fits: Callable[[Any], bool], wrong: Callable[[Any], str]) -> Validator:
    """None passes: it stands for "chosen later"."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not fits(value):
            raise ConfigError(wrong(value), path=attribute.name)

    return check


@attrs.frozen
class OneOf:
    """The value is one of the names; an unknown one is answered with the nearest."""

    allowed: tuple[str, ...]

    def __call__(self, instance: Any, attribute: Any, value: Any) -> None:
        if value not in self.allowed:
            raise ConfigError(unknown(attribute.name, str(value), self.allowed), path=attribute.name)


def one_of(*allowed: str) -> OneOf:
    """The validator for a value out of these names."""
    return OneOf(allowed)


def not_empty(instance: Any, attribute: Any, value: Collection[Any]) -> None:
    """The text or collection holds something."""
    if not value:
        raise ConfigError("is empty; give a value", path=attribute.name)


def real_text(instance: Any, attribute: Any, value: str | tuple[str, ...] | None) -> None:
    """The text, or each of several, can be encoded; None passes."""
    for text in () if value is None else (value,) if isinstance(value, str) else value:
        if wrong := no_text(text):
            raise ConfigError(f"{text!r} is no text: {wrong}", path=attribute.name)


def device_name(instance: Any, attribute: Any, value: str) -> None:
    """`auto`, `cpu`, `cuda` or `cuda:N`; whether it is there is not asked here."""
    check_device_name(value, path=attribute.name)


def check_device_name(value: str, *, path: str) -> None:
    """Raise ConfigError for what is no device that DBA knows, with the one that was probably meant."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value):
        return
    number = re.fullmatch(r"(?:cuda|gpu)[-_: ]?([0-9]+)|([0-9]+)", value.lower())
    if number:
        meant = f"cuda:{number[1] or number[2]}"
    elif value.lower() in _OTHER_GPUS:
        raise ConfigError(
            f"device {value!r} is not supported; allowed: auto, cpu, and for NVIDIA GPUs cuda or cuda:N",
            path=path,
        )
    else:
        close = nearest(value.lower(), ("auto", "cpu", "cuda"), count=1)
        meant = "cuda" if value.lower() in ("gpu", "nvidia") else close[0] if close else ""
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise ConfigError(f"unknown device {value!r}.{hint} Allowed: auto, cpu, cuda, cuda:N", path=path)
