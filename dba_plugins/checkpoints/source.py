"""A pretrained model as every loader gives it: configuration, rotation frequencies, weights by our names.

Weights are read one at a time and only when the model is built, so that nothing is in memory twice; their
shapes are compared with the configuration before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from dba_core.config.model import ModelConfig
from dba_core.errors import CheckpointError
from dba_core.model.finite import check_finite
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.checkpoints.shapes import check_shapes

#: What a converted model starts from: no gate and no null token, as the source model had none.
PLAIN = PluginChoices(gate=PluginChoice("none"), null_token=PluginChoice("none"))


def as_it_is(tensor: Tensor) -> Tensor:
    """The same."""
    return tensor


@attrs.frozen(kw_only=True, eq=False)
class SourceTensor:
    """name: in the file `where`. shape: as the header says, and ours. read: float32, in the file's order.
    arrange: what makes our weight of it.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    arrange: Callable[[Tensor], Tensor] = as_it_is

    def load(self) -> Tensor:
        """Our weight, float32. Raises CheckpointError for one that is not finite, with the place in the
        file's tensor, and for a file that is no longer what its header said.
        """
        stored = self.read()
        check_finite(stored, name=self.name, where=self.where)
        made = self.arrange(stored)
        if made is not stored:
            check_finite(made, name=self.name, where=self.where)
        if tuple(made.shape) != self.shape:
            raise CheckpointError(
                f"{self.where}: {self.name} has shape {tuple(made.shape)} and not {self.shape}, as the "
                "header said; the file changed while it was read. Start again"
            )
        return made


def with_attention_factor(weights: Mapping[str, SourceTensor], factor: float) -> dict[str, SourceTensor]:
    """The same model where rotated queries and keys are multiplied by `factor`: queries times its square.

    Scores are what they were, and nothing after the loader has to know of the factor.
    """

    def scaled(tensor: SourceTensor) -> SourceTensor:
        def arrange(stored: Tensor) -> Tensor:
            return (tensor.arrange(stored).double() * factor**2).float()

        return attrs.evolve(tensor, arrange=arrange)

    if factor == 1:
        return dict(weights)
    return {
        name: scaled(tensor) if name.endswith(".attn.q_geo.weight") else tensor
        for name, tensor in weights.items()
    }


@attrs.frozen(kw_only=True, eq=False)
class SourceModel:
    """name: for reports. family: `llama` and so on. config: resolved. frequencies: radians per token of the
    rotated pairs, float64 [G, head_dim/2] or None for the series of rope_theta. weights: by our parameter
    names. tokenizer_json: the text of a Hugging Face tokenizer.json, None where the source has none.
    tokenizer_config: what the source says of its special tokens, in the names of a tokenizer_config.json
    (`SpecialTokens.from_document`). plugins: what the weights need. files: names of the files that were read.
    notes: what a user should know of the loading.
    """

    name: str
    family: str
    path: Path
    config: ModelConfig
    weights: Mapping[str, SourceTensor]
    files: tuple[str, ...]
    frequencies: Tensor | None = None
    tokenizer_json: str | None = None
    tokenizer_config: Mapping[str, Any] = attrs.field(factory=dict)
    plugins: PluginChoices = PLAIN
    notes: tuple[str, ...] = ()

    def checked(self) -> SourceModel:
        """The same. Raises CheckpointError unless the files hold just the weights of the model, each of its
        shape.
        """
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        check_shapes(self.config, self.plugins, shapes, where=str(self.path))
        return self

    def without_weights(self) -> SourceModel:
        """The same once it is built: what the files take of memory is let go with the last one that reads
        them.
        """
        return attrs.evolve(self, weights={})

    def build(self) -> LanguageModel:
        """The model in evaluation mode, float32 on the CPU. Raises CheckpointError as `SourceTensor.load`;
        nothing is half loaded then.
        """
        model = LanguageModel(self.config, plugins=self.plugins)
        own = model.state_dict()
        with torch.no_grad():
            for name, tensor in self.weights.items():
                own[name].copy_(tensor.load())
            for name in own.keys() - self.weights.keys():  # tables of rotation frequencies, by `checked`
                assert self.frequencies is not None
                own[name].copy_(self.frequencies)
        return model.eval()
