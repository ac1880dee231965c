"""What a checkpoint source is asked and what it answers: a path, and the pretrained model that is there.

A source describes the model in plain numbers (`ModelDescription`) and gives each weight on demand
(`StoredWeight`), under the name that the weight has in `LanguageModel.state_dict()`; `expected_shapes` lists
them. Of a Llama:

    tok_emb.weight [V, d_model]                     ln_f.weight [d_model]       lm_head.weight [V, d_model]
    blocks.3.ln1.weight [d_model]                   blocks.3.ln2.weight [d_model]
    blocks.3.attn.q_geo.weight [H*Dg, d_model]      blocks.3.attn.k_geo.weight [G*Dg, d_model]
    blocks.3.attn.v_proj.weight [G*Dv, d_model]     blocks.3.attn.out_proj.weight [d_model, H*Dv]
    blocks.3.ff.w_gate.weight [d_ff, d_model]       blocks.3.ff.w_up.weight [d_ff, d_model]
    blocks.3.ff.w_down.weight [d_model, d_ff]

Channels i and i + Dg/2 of a head are the pair that is rotated together. `dba_core.model.pretrained` compares
all of it before anything is built. A plugin finds these names in `contracts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

#: How much of a file is looked at.
HEAD_BYTES = 64

Shape = tuple[int, ...]


@attrs.frozen(kw_only=True)
class SourceRequest:
    """A path that may hold a pretrained model, and what a cheap look at it shows.

    entries: the names in a folder, sorted; () for a file. head: the first HEAD_BYTES of a file; b"" for a
    folder.
    """

    path: Path
    is_folder: bool
    entries: tuple[str, ...] = ()
    head: bytes = b""

    @classmethod
    def of(cls, path: Path) -> SourceRequest:
        """Look. Raises SourceError for a path that is not there or may not be read."""
        try:
            if path.is_dir():
                entries = tuple(sorted(each.name for each in path.iterdir()))
                return cls(path=path, is_folder=True, entries=entries)
            with path.open("rb") as opened:
                return cls(path=path, is_folder=False, head=opened.read(HEAD_BYTES))
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror or error}); get it again") from None


@attrs.frozen(kw_only=True)
class ModelDescription:
    """A pre-norm transformer in numbers, as its file has them; `ModelConfig` checks them.

    geo_head_dim: rotated channels of a head. sem_head_dim: those without rotation, 0 where there are none.
    embed_dim: width of the embedding table, None is d_model. norm: rmsnorm, layernorm. mlp: swiglu, gelu,
    silu. tie_qk: keys have the queries' weights. gate, null_token: the plugins that the weights need.
    """

    vocab_size: int
    context: int
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    geo_head_dim: int
    v_head_dim: int
    sem_head_dim: int = 0
    embed_dim: int | None = None
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    mlp: str = "swiglu"
    dropout: float = 0.0
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    tie_qk: bool = False
    learned_temperature: bool = False
    gate: str = "none"
    null_token: str = "none"


@attrs.frozen(kw_only=True, eq=False)
class StoredWeight:
    """One weight, still in its file. name: in the file `where`. shape: that of the model's weight. read: the
    numbers as stored, float32, read anew at every call. arrange: what makes the model's weight of them, where
    that is something else; errors about the numbers name their place in the file.
    """

    name: str
    where: str
    shape: Shape
    read: Callable[[], Tensor]
    arrange: Callable[[Tensor], Tensor] | None = None


@attrs.frozen(kw_only=True, eq=False)
class OpenedSource:
    """A pretrained model whose files were looked at; nothing but names, sizes and texts was read.

    name: for reports. family: `llama` and so on. weights: by the names in the module. frequencies: makes the
    radians per token of the rotated pairs, float64 [G, Dg/2]; asked for once the shapes were compared; None
    is the series of rope_theta. tokenizer_json: the text of a Hugging Face tokenizer.json, None where there
    is none. tokenizer_config: what is said of special tokens and the chat template, in the names of a
    tokenizer_config.json. files: names of the files that were read. notes: what a user should know.
    """

    name: str
    family: str
    description: ModelDescription
    weights: Mapping[str, StoredWeight]
    files: tuple[str, ...]
    frequencies: Callable[[], Tensor] | None = None
    tokenizer_json: str | None = None
    tokenizer_config: Mapping[str, Any] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


def expected_shapes(model: ModelDescription) -> Iterator[tuple[str, Shape]]:
    """Every weight of the model but its table of rotation frequencies; nothing is allocated."""
    width, embed = model.d_model, model.d_model if model.embed_dim is None else model.embed_dim
    heads, kv_heads = model.n_heads, model.n_kv_heads
    norms = {"weight": (width,)}
    if model.norm == "layernorm" and model.norm_bias:
        norms["bias"] = (width,)
    block: dict[str, Shape] = {f"{norm}.{name}": norms[name] for norm in ("ln1", "ln2") for name in norms}
    block["ff.w_up.weight"] = (model.d_ff, width)
    block["ff.w_down.weight"] = (width, model.d_ff)
    if model.mlp == "swiglu":
        block["ff.w_gate.weight"] = (model.d_ff, width)
    for path, head_dim in (("geo", model.geo_head_dim), ("sem", model.sem_head_dim)):
        if head_dim:
            block[f"attn.q_{path}.weight"] = (heads * head_dim, width)
        if head_dim and not model.tie_qk:
            block[f"attn.k_{path}.weight"] = (kv_heads * head_dim, width)
        if head_dim and model.null_token == "learned":
            block[f"attn.null_token.k_{path}_null"] = (kv_heads, head_dim)
    block["attn.v_proj.weight"] = (kv_heads * model.v_head_dim, width)
    block["attn.out_proj.weight"] = (width, heads * model.v_head_dim)
    if model.null_token == "learned":
        block["attn.null_token.v_null"] = (kv_heads, model.v_head_dim)
    if model.learned_temperature:
        block["attn.logit_scale"] = (heads,)
    if model.gate in ("causal", "static"):
        block["attn.gate.decoupled_gate_logit"] = (heads,)
    if model.gate == "causal":
        block["attn.gate.decoupled_gate_proj.weight"] = (heads, width)

    yield "tok_emb.weight", (model.vocab_size, embed)
    if embed != width:
        yield "emb_in.weight", (width, embed)
        yield "emb_out.weight", (embed, width)
    if not model.tie_embeddings:
        yield "lm_head.weight", (model.vocab_size, embed)
    for layer in range(model.n_layers):
        yield from ((f"blocks.{layer}.{name}", shape) for name, shape in block.items())
    yield from ((f"ln_f.{name}", shape) for name, shape in norms.items())


#: What a source may write as its `example`.
EXAMPLE = ModelDescription(
    vocab_size=256,
    context=32,
    n_layers=2,
    d_model=32,
    d_ff=48,
    n_heads=4,
    n_kv_heads=2,
    geo_head_dim=8,
    v_head_dim=8,
)


def example_weights(model: ModelDescription = EXAMPLE) -> dict[str, Tensor]:
    """Random weights of the model by their names, float32, the same at every call."""
    import torch  # this module is read without it

    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in expected_shapes(model)
    }
