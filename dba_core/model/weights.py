"""The weights of a language model: drawn, each parameter from a generator of its own, or read from a file.

    generator(seed, name) = torch.Generator seeded by SHA-256(seed, name)
    tok_emb, lm_head           N(0, 0.02^2)
    other matrices             N(0, (0.5 / sqrt(fan_in))^2)          0.018 at width 768, GPT-2's 0.02 at 625
    those back into the stream the same times 1 / sqrt(2 n_layers)   (GPT-2: one addition per branch)

The spread follows the width because 0.02 is too small for narrow models: preset `shakespeare-cpu`, decoupled,
seeds 1337 and 1, ends at a held-out loss of 1.648 and 1.644, with 0.02 everywhere at 1.680 and 1.694.

Names decide, so exchanging a gate, a null token or a summarizer changes no other parameter. Vectors (norms,
biases, temperatures) keep what their modules set. Plugin modules initialize themselves: the neutral gate, the
zero null token and the summarizer that equals `mean` depend on it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dba_core.errors import CheckpointError

TABLE_STD = 0.02
#: Standard deviation of a projection times the square root of its inputs.
GAIN = 0.5
#: Tables of one vector per token; their first axis is the vocabulary.
TABLES = ("tok_emb.weight", "lm_head.weight")
#: The modules that plugins build, as parts of a dotted parameter name.
PLUGIN_MODULES = ("attn.gate.", "attn.null_token.", "attn.summarizer.")
#: The projections whose output is added to the residual stream.
RESIDUAL_OUTPUTS = ("attn.out_proj.weight", "ff.w_down.weight")


def seed_of(seed: int, name: str) -> int:
    """A 63-bit seed that depends on both; equal on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def is_plugin_parameter(name: str) -> bool:
    """Whether the parameter of this dotted name belongs to a gate, a null token or a summarizer."""
    return any(part in name for part in PLUGIN_MODULES)


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int, n_layers: int, but: Iterable[nn.Module] = ()) -> None:
    """Draw every matrix of the model that is not a plugin's, on the CPU; on `meta` there is none to draw.

    but: parts of the model whose parameters stay as they are.
    """
    kept = {id(parameter) for part in but for parameter in part.parameters()}
    for name, parameter in model.named_parameters():
        if is_plugin_parameter(name) or parameter.dim() < 2 or parameter.is_meta or id(parameter) in kept:
            continue
        std = TABLE_STD if name in TABLES else GAIN / math.sqrt(parameter.shape[1])
        if name.endswith(RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * n_layers)
        generator = torch.Generator("cpu").manual_seed(seed_of(seed, name))
        parameter.copy_(torch.empty_like(parameter, device="cpu").normal_(0.0, std, generator=generator))


def check_finite(tensor: Tensor, *, name: str, where: str) -> None:
    """Raise CheckpointError for a floating tensor (any shape) of the file `where` with a NaN or an infinity:
    one anywhere makes every result a NaN. The message says how many there are and where the first one is.

    One pass over the tensor, no copy of it where all is well.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # The sum is not finite if an element is not; a finite tensor whose sum overflows is looked at one by one.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if count == 0:
        return
    place = tuple(int(i) for i in bad.nonzero()[0])
    raise CheckpointError(
        f"{where}: {name} holds {count} of {tensor.numel()} values that are not finite, the first at "
        f"{list(place)} ({float(tensor[place])}). The file is damaged, or the "
        "training that wrote it diverged; get it again, or take an earlier checkpoint"
    )
