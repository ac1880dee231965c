"""A pretrained model as every loader gives it: configuration, rotation frequencies, weights by our names.

Weights are read one at a time and only when the model is built, so that nothing is in memory twice. Made by
`huggingface`, `gguf_file` and `origin`; called by `dba_core.convert.job` and by `load_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from dba_core.config.model import ModelConfig
from dba_core.config.plugins import PluginChoice, PluginChoices
from dba_core.errors import CheckpointError
from dba_core.model.language_model import LanguageModel

#: What a converted model starts from: no gate and no null token, as the source model had none.
PLAIN = PluginChoices(gate=PluginChoice("none"), null_token=PluginChoice("none"))


@attrs.frozen(kw_only=True, eq=False)
class SourceModel:
    """name: for reports. family: `llama` and so on. config: resolved. frequencies: radians per token of the
    rotated pairs, float64 [G, head_dim/2] or None for the series of rope_theta. weights: our parameter names
    and what reads each one, float32. tokenizer_json: the text of a Hugging Face tokenizer.json, None where
    the source has none. tokenizer_config: what the source says of its special tokens, in the names of a
    tokenizer_config.json (`SpecialTokens.from_document`). plugins: what the weights need.
    notes: what a user should know of the loading.
    """

    name: str
    family: str
    path: Path
    config: ModelConfig
    weights: Mapping[str, Callable[[], Tensor]]
    frequencies: Tensor | None = None
    tokenizer_json: str | None = None
    tokenizer_config: Mapping[str, Any] = attrs.field(factory=dict)
    plugins: PluginChoices = PLAIN
    notes: tuple[str, ...] = ()

    def without_weights(self) -> SourceModel:
        """The same once it is built: what the files take of memory is let go with the last one that reads
        them.
        """
        return attrs.evolve(self, weights={})

    def build(self) -> LanguageModel:
        """The model in evaluation mode, float32 on the CPU. Raises CheckpointError for tensors that are
        missing, unknown or of another shape; nothing is half loaded then.
        """
        model = LanguageModel(self.config, plugins=self.plugins)
        own = model.state_dict()
        tables = {name for name in own if name.endswith("rope_frequencies.frequencies")}
        check_names(set(own) - tables, set(self.weights), where=str(self.path))
        with torch.no_grad():
            for name, read in self.weights.items():
                tensor = read()
                if tensor.shape != own[name].shape:
                    raise CheckpointError(
                        f"{self.path}: {name} has shape {tuple(tensor.shape)}, its configuration asks for "
                        f"{tuple(own[name].shape)}; the file and its configuration do not belong together"
                    )
                own[name].copy_(tensor)
            for name in tables:
                assert self.frequencies is not None
                own[name].copy_(self.frequencies)
        return model.eval()


def check_names(wanted: set[str], given: set[str], *, where: str) -> None:
    """Raise CheckpointError unless both are the same names."""
    problems = [f"{name} is missing" for name in sorted(wanted - given)]
    problems += [f"{name} is not part of this architecture" for name in sorted(given - wanted)]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(
            f"{where} does not hold the weights of the model that it describes: {shown}. Download it again, "
            "or give a model of a supported family"
        )
