"""Rotation frequencies of pretrained models that stretch RoPE over longer contexts, D channels to a head:

    default, linear     f_i = theta^(-2i/D) / factor
    llama3              long wavelengths divided by factor, short ones kept, a blend between (Llama 3.1)
    yarn                by the number of rotations over the original length: above beta_fast kept, below
                        beta_slow divided by factor, between them a ramp over i (Peng et al. 2023,
                        arXiv:2309.00071)

YaRN also multiplies cos and sin by an attention factor m, which is the same as scores times m^2: it becomes
part of the queries' weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from dba_core.attention.rope import rope_frequencies
from dba_core.contracts import ModelDescription, StoredWeight
from dba_core.errors import CheckpointError, SourceError, unknown

SUPPORTED = ("default", "linear", "llama3", "yarn")
#: What is refused, and why it cannot be had.
REFUSED = {
    "dynamic": "its frequencies depend on the length of the text, and a cache holds keys that are rotated",
    "longrope": "it changes from one table of frequencies to another at the original length, and a cache "
    "holds keys that are rotated",
}
REFUSED["su"] = REFUSED["longrope"]  # its name of before


@attrs.frozen(kw_only=True)
class RopeScaling:
    """kind: one of SUPPORTED. original: tokens that the model was trained on before it was stretched.
    attention_factor: m, of every kind.
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def table_of(
        self, model: ModelDescription, *, divisors: Callable[[], Tensor] | None = None
    ) -> Callable[[], Tensor] | None:
        """What makes the frequencies of each KV head, float64 [G, Dg/2]; None where the series of theta is
        meant. divisors: makes what they are divided by before they are scaled, float64 [Dg/2].
        """
        if self.kind == "default" and divisors is None:
            return None

        def table() -> Tensor:
            divided_by = None if divisors is None else divisors()
            frequencies = self.frequencies(model.geo_head_dim, model.rope_theta, divisors=divided_by)
            return frequencies.expand(model.n_kv_heads, -1)

        return table

    def frequencies(self, head_dim: int, theta: float, *, divisors: Tensor | None = None) -> Tensor:
        """Radians per token of each pair, float64 [head_dim/2]."""
        series = rope_frequencies(head_dim, theta)
        given = series if divisors is None else series / divisors
        if self.kind == "llama3":
            return self._llama3(given)
        if self.kind == "yarn":
            kept = self._kept(head_dim, theta)
            return given / self.factor * (1 - kept) + given * kept
        return given / self.factor

    def _llama3(self, frequencies: Tensor) -> Tensor:
        wavelength = 2 * math.pi / frequencies
        blend = (self.original / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blend = blend.clamp(0.0, 1.0)  # 0: long, 1: short
        return (1 - blend) * frequencies / self.factor + blend * frequencies

    def _kept(self, head_dim: int, theta: float) -> Tensor:
        """How much of each pair's frequency is kept, 1 to 0 along the pairs."""

        def pair_that_turns(rotations: float) -> float:
            """The pair, as a real number, that turns so often over the original length."""
            return head_dim * math.log(self.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001  # a step, not a division by zero
        ramp = (torch.arange(head_dim // 2, dtype=torch.float64) - low) / (high - low)
        return 1 - ramp.clamp(0.0, 1.0)


def yarn_attention_factor(factor: float, *, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """m where the file does not say it: 0.1 ln(factor) + 1, or a ratio of two such where both are given."""

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


def check_kind(kind: str, *, where: str) -> None:
    """Raise SourceError for a kind of scaling that is not SUPPORTED, with the reason."""
    if kind in SUPPORTED:
        return
    if kind in REFUSED:
        raise SourceError(
            f"{where}: RoPE scaling {kind!r} is not supported: {REFUSED[kind]}. Supported: "
            f"{', '.join(SUPPORTED)}. Give a model with one of these"
        )
    raise SourceError(f"{where}: {unknown('RoPE scaling', kind, SUPPORTED)}")


def check_scaling(scaling: RopeScaling, *, theta: float, where: str) -> None:
    """Raise CheckpointError for numbers that the formulas have no answer for."""
    wrong = None
    if scaling.kind == "llama3" and not scaling.low_freq_factor < scaling.high_freq_factor:
        wrong = (
            f"low_freq_factor={scaling.low_freq_factor:g} is not below high_freq_factor="
            f"{scaling.high_freq_factor:g}"
        )
    if scaling.kind == "yarn" and not scaling.beta_slow < scaling.beta_fast:
        wrong = f"beta_slow={scaling.beta_slow:g} is not below beta_fast={scaling.beta_fast:g}"
    if scaling.kind == "yarn" and theta <= 1:
        wrong = f"rope_theta={theta:g} is not above 1, and the wavelengths do not grow along the pairs"
    if wrong:
        raise CheckpointError(
            f"{where}: RoPE scaling {scaling.kind!r}: {wrong}. The file is damaged or was changed; get it "
            "again"
        )


def with_attention_factor(weights: Mapping[str, StoredWeight], factor: float) -> dict[str, StoredWeight]:
    """The same model where rotated queries and keys are multiplied by `factor`: queries times its square.

    Scores are what they were, and nothing after the source has to know of the factor.
    """

    def scaled(weight: StoredWeight) -> StoredWeight:
        before = weight.arrange

        def arrange(stored: Tensor) -> Tensor:
            made = stored if before is None else before(stored)
            return (made.double() * factor**2).float()

        return attrs.evolve(weight, arrange=arrange)

    if factor == 1:
        return dict(weights)
    return {
        name: scaled(weight) if name.endswith(".attn.q_geo.weight") else weight
        for name, weight in weights.items()
    }
