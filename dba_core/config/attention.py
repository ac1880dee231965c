"""The configuration of one attention layer: its layout and the widths of its paths.

    score = (q_sem . k_sem) / sqrt(Ds) + (q_geo . k_geo) / sqrt(Dg)

Every layout is this one with some widths: `standard` and `gqa` have no semantic path and a geometric path as
wide as the model, `bottleneck` has a narrow geometric path only, `decoupled` has both.
"""

from __future__ import annotations

import attrs

from dba_core.contracts import AttentionShape
from dba_core.errors import ConfigError
from dba_core.serialization.validators import at_least, between, one_of, positive
from dba_core.serialization.values import Serializable, exact_types

MODES = ("standard", "gqa", "bottleneck", "decoupled")


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class AttentionConfig(Serializable):
    """Sizes and options of one attention layer. None means "derived from the rest" (see `resolved`).

    n_kv_heads: heads of geometric keys, and of semantic keys and values unless sem_kv_heads or v_kv_heads
    says fewer: each of those is then shared by equally many neighbouring KV heads. rope_table: the layer
    holds its rotation frequencies per KV head as part of its weights, instead of the series of rope_theta.
    sem_offset: the layer subtracts a constant, part of its weights, from semantic keys.
    """

    mode: str = attrs.field(default="decoupled", validator=one_of(*MODES))
    d_model: int | None = attrs.field(default=None, validator=at_least(1))
    n_heads: int = attrs.field(default=6, validator=at_least(1))
    n_kv_heads: int | None = attrs.field(default=None, validator=at_least(1))
    sem_head_dim: int | None = attrs.field(default=None, validator=at_least(0))
    geo_head_dim: int | None = attrs.field(default=None, validator=at_least(2))
    v_head_dim: int | None = attrs.field(default=None, validator=at_least(1))
    sem_kv_heads: int | None = attrs.field(default=None, validator=at_least(1))
    v_kv_heads: int | None = attrs.field(default=None, validator=at_least(1))
    rope_theta: float = attrs.field(default=10000.0, validator=positive())
    rope_table: bool = False
    sem_offset: bool = False
    tie_qk: bool = False
    learned_temperature: bool = False
    dropout: float = attrs.field(default=0.0, validator=between(0, 1, open_high=True))

    def __attrs_post_init__(self) -> None:
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "choose n_kv_heads that divides n_heads",
                path="n_kv_heads",
            )
        if self.geo_head_dim is not None and self.geo_head_dim % 2:
            raise ConfigError(
                f"{self.geo_head_dim} is odd; RoPE rotates pairs of channels, so the width must be even",
                path="geo_head_dim",
            )
        if self.mode != "decoupled" and self.sem_head_dim:
            raise ConfigError(
                f"mode {self.mode!r} has no semantic path, got {self.sem_head_dim}; leave it out "
                "or choose mode='decoupled'",
                path="sem_head_dim",
            )
        if self.mode == "decoupled" and self.sem_head_dim == 0:
            raise ConfigError(
                "mode 'decoupled' needs a semantic path, got 0; give at least 1 or choose mode='bottleneck'",
                path="sem_head_dim",
            )
        if self.tie_qk and self.n_kv_heads not in (None, self.n_heads):
            raise ConfigError(
                f"tied projections need as many KV heads as query heads, got n_heads={self.n_heads} and "
                f"n_kv_heads={self.n_kv_heads}",
                path="tie_qk",
            )
        if self.mode != "decoupled" and (self.sem_kv_heads is not None or self.sem_offset):
            raise ConfigError(
                f"mode {self.mode!r} has no semantic path, so sem_kv_heads and sem_offset mean nothing; "
                "leave them out or choose mode='decoupled'",
                path="sem_kv_heads" if self.sem_kv_heads is not None else "sem_offset",
            )
        if self.tie_qk and (self.sem_kv_heads is not None or self.sem_offset):
            raise ConfigError(
                "tied projections make semantic keys from the queries' weights: as many heads, no offset; "
                "leave sem_kv_heads and sem_offset out or choose tie_qk=false",
                path="tie_qk",
            )
        if self.mode == "gqa" and self.n_kv_heads == self.n_heads:
            raise ConfigError(
                f"mode 'gqa' needs fewer KV heads than query heads, got {self.n_kv_heads} of {self.n_heads}; "
                "choose a smaller n_kv_heads or mode='standard'",
                path="n_kv_heads",
            )

    def resolved(self, *, d_model: int | None = None) -> AttentionConfig:
        """The same with every None replaced by its derived number.

        The width of a full head is d_model / n_heads. `standard` and `gqa` use it for geometry and value;
        `bottleneck` and `decoupled` use a quarter of it, of which `decoupled` gives a quarter to the semantic
        path and the rest to the geometric one (rounded to even). `gqa` keeps a quarter of the heads.
        """
        return attrs.evolve(self, **attrs.asdict(self._shape(d_model)))

    def _kv_heads(self) -> int:
        if self.n_kv_heads is not None:
            return self.n_kv_heads
        if self.mode != "gqa":
            return self.n_heads
        if self.n_heads == 1:
            raise ConfigError("mode 'gqa' needs at least 2 query heads, got 1", path="n_heads")
        return max(g for g in range(1, max(1, self.n_heads // 4) + 1) if self.n_heads % g == 0)

    def _widths(self, d_model: int) -> tuple[int, int, int]:
        """Semantic, geometric and value width of one head."""
        explicit = self.geo_head_dim is not None and self.v_head_dim is not None
        if d_model % self.n_heads and not (explicit and (self.sem_head_dim or self.mode != "decoupled")):
            raise ConfigError(
                f"d_model={d_model} is not a multiple of n_heads={self.n_heads}, so head widths cannot be "
                "derived; give sem_head_dim, geo_head_dim and v_head_dim",
                path="n_heads",
            )
        full = d_model // self.n_heads
        narrow = max(2, full // 4)
        if self.mode in ("standard", "gqa"):
            return 0, self.geo_head_dim or _even(full), self.v_head_dim or full
        if self.mode == "bottleneck":
            geo = self.geo_head_dim or _even(narrow)
            return 0, geo, self.v_head_dim or geo
        sem = self.sem_head_dim or max(1, narrow // 4)
        geo = self.geo_head_dim or _even(max(2, narrow - sem))
        return sem, geo, self.v_head_dim or sem + geo

    @property
    def shape(self) -> AttentionShape:
        """The sizes as plugins see them. Derived numbers are filled in."""
        return self.resolved()._shape(None)  # what is derived is checked like what is given

    def _shape(self, d_model: int | None) -> AttentionShape:
        """d_model: the model's, None where it is not known."""
        width = self.d_model if self.d_model is not None else d_model
        if width is None:
            raise ConfigError("is missing; give the model's width", path="d_model")
        if d_model is not None and width != d_model:
            raise ConfigError(
                f"{width} differs from model.d_model={d_model}; leave it out to take the model's",
                path="d_model",
            )
        sem, geo, v = self._widths(width)
        kv_heads = self._kv_heads()
        for name, heads in (("sem_kv_heads", self.sem_kv_heads), ("v_kv_heads", self.v_kv_heads)):
            if heads is not None and kv_heads % heads:
                raise ConfigError(
                    f"{heads} does not divide n_kv_heads={kv_heads}; every one of these heads is shared by "
                    "equally many KV heads",
                    path=name,
                )
        return AttentionShape(
            d_model=width,
            n_heads=self.n_heads,
            n_kv_heads=kv_heads,
            sem_head_dim=sem,
            geo_head_dim=geo,
            v_head_dim=v,
            sem_kv_heads=self.sem_kv_heads,
            v_kv_heads=self.v_kv_heads,
        )


def _even(width: int) -> int:
    return width - width % 2 if width > 2 else 2
