"""The pretrained model at a path: the checkpoint source that recognizes it, compared, built on demand.

    model = open_pretrained(path).build()

Weights are read one at a time and only when the model is built, so that nothing is in memory twice. A file
that claims sizes which it does not hold is refused before anything is allocated by them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from dba_core.checkpoint_source import (
    ModelDescription,
    OpenedSource,
    SourceRequest,
    expected_shapes,
)
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.config.model import ModelConfig, ResolvedModel
from dba_core.errors import CheckpointError, ConfigError, PluginError, SourceError, UnsupportedError
from dba_core.model.language_model import LanguageModel
from dba_core.model.weights import check_finite
from dba_core.printable import printable
from dba_core.registry import Registry, Selection
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_core.registry.contain import Failure, attributed, contain, kept_surroundings, shown

KIND = "checkpoint_source"
#: What a path has to be for the sources that come with the library.
KINDS_OF_FILE = (
    "the folder of a Hugging Face model (config.json, *.safetensors), a .gguf file, or a checkpoint of the "
    "origin system (.pt)"
)
T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class PretrainedModel:
    """opened: what the source said. frequencies: radians per token of the rotated pairs, float64 [G, Dg/2],
    None for the series of rope_theta. selection: the source, and why it was taken.
    """

    path: Path
    opened: OpenedSource
    config: ResolvedModel
    frequencies: Tensor | None
    selection: Selection

    @property
    def plugins(self) -> PluginChoices:
        """Those that the weights were made for."""
        needed = self.opened.description
        return PluginChoices(gate=PluginChoice(needed.gate), null_token=PluginChoice(needed.null_token))

    def load(self, name: str) -> Tensor:
        """One weight of the model, float32. Raises CheckpointError for one that is not finite, with the place
        in the file's tensor, and for a file that is no longer what its header said.
        """
        weight = self.opened.weights[name]
        made = _asked(self.selection, weight.read)
        check_finite(made, name=weight.name, where=weight.where)
        if weight.arrange is not None:
            made = _asked(self.selection, functools.partial(weight.arrange, made))
            check_finite(made, name=weight.name, where=weight.where)
        if tuple(made.shape) != weight.shape:
            raise CheckpointError(
                f"{weight.where}: {weight.name} has shape {tuple(made.shape)} and not {weight.shape}, as the "
                "header said; the file changed while it was read. Start again"
            )
        return made

    def build(self) -> LanguageModel:
        """The model in evaluation mode, float32 on the CPU. Raises CheckpointError as `load`; nothing is half
        loaded then.
        """
        model = LanguageModel(self.config, plugins=self.plugins)
        own = model.state_dict()
        with torch.no_grad():
            for name in self.opened.weights:
                own[name].copy_(self.load(name))
            if self.frequencies is not None:
                for name in own.keys() - self.opened.weights.keys():  # the tables, by `check_weights`
                    own[name].copy_(self.frequencies)
        return model.eval()


def open_pretrained(path: str | Path, *, registry: Registry | None = None) -> PretrainedModel:
    """The pretrained model at `path`, read by the first installed checkpoint source that recognizes it.

    Nothing is read into memory but names, sizes and the tokenizer; `PretrainedModel.build` reads the weights.
    Raises SourceError for a path that is not there or that no source recognizes, with each source's reason,
    and for a model that this library does not compute; CheckpointError for one that is damaged.
    """
    given = Path(path)
    if not given.exists():
        raise SourceError(_missing(given))
    plugins = Registry.default() if registry is None else registry
    try:
        selection = plugins.select(KIND, "auto", SourceRequest.of(given))
    except UnsupportedError as error:
        raise SourceError(
            f"{given} is no model that can be opened; give {KINDS_OF_FILE}. What each source that is "
            "installed says:",
            reasons=error.reasons,
        ) from None
    return open_with(selection)


def open_with(selection: Selection) -> PretrainedModel:
    """The model at the path of the selection's request, read by the selected source."""
    path: Path = selection.request.path
    opened = _asked(selection, lambda: selection.plugin.build(selection.request, selection.options))
    if not isinstance(opened, OpenedSource):
        raise PluginError(
            f"{selection.who} built {shown(opened)}, no OpenedSource. Report it to "
            "the plugin's author, or uninstall it."
        )
    config = model_config(opened, where=str(path))
    check_weights(opened, where=str(path))
    frequencies = None if opened.frequencies is None else _asked(selection, opened.frequencies)
    return PretrainedModel(
        path=path, opened=opened, config=config, frequencies=frequencies, selection=selection
    )


def _asked(selection: Selection, action: Callable[[], T]) -> T:
    """What the source's own code answers. What it says against the file passes as it is; anything else that
    it raises gets its name.
    """
    with kept_surroundings():
        answer = contain(action)
    if not isinstance(answer, Failure):
        return answer
    if isinstance(answer.error, (CheckpointError, SourceError)):
        raise answer.error
    raise attributed(answer.error, selection.who, "failed to read a model") from answer.error


def _missing(path: Path) -> str:
    """What a path that is not there was probably meant to be."""
    text = path.as_posix()
    if re.match(r"[a-z0-9]+:/", text):
        return (
            f"{text} is an address, and DBA downloads nothing; download the model first, and give "
            f"{KINDS_OF_FILE}"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.exists():
        return (
            f"there is no folder {text}. If it is a model on Hugging Face: DBA downloads nothing; fetch it "
            f"first (hf download {text} --local-dir {path.name}), and give its folder: {path.name}"
        )
    return f"there is no file or folder {text}; give {KINDS_OF_FILE}"


def model_config(opened: OpenedSource, *, where: str) -> ResolvedModel:
    """The description as a configuration. Raises CheckpointError for one that is of no model."""
    model = opened.description
    own = attrs.fields_dict(ModelConfig)
    sizes = {name: value for name, value in attrs.asdict(model).items() if name in own}
    try:
        attention = AttentionConfig(
            mode=_layout(model),
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            sem_head_dim=model.sem_head_dim,
            geo_head_dim=model.geo_head_dim,
            v_head_dim=model.v_head_dim,
            rope_theta=model.rope_theta,
            rope_table=opened.frequencies is not None,
            tie_qk=model.tie_qk,
            learned_temperature=model.learned_temperature,
        )
        sizes["norm_bias"] = model.norm_bias or None
        exact = LongSequenceConfig(enabled=False)
        return ModelConfig(**sizes, attention=attention, train_long_seq=exact).resolved()
    except ConfigError as error:
        raise CheckpointError(f"{where} describes no model: {error}") from error


def _layout(model: ModelDescription) -> str:
    """The name of the layout; only the widths matter."""
    if model.sem_head_dim:
        return "decoupled"
    if model.n_kv_heads != model.n_heads:
        return "gqa"
    return "bottleneck" if model.n_heads * model.geo_head_dim < model.d_model else "standard"


def check_weights(opened: OpenedSource, *, where: str) -> None:
    """Raise CheckpointError unless the source gives just the weights of the model, each with its shape."""
    given, n_layers = opened.weights, opened.description.n_layers
    if n_layers > len(given):
        raise CheckpointError(
            f"{where} describes {n_layers} layers and holds {len(given)} weights; the file and its "
            "configuration do not belong together. Get both again"
        )
    wanted = dict(expected_shapes(opened.description))
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    foreign = [
        f"{printable(name)} is not part of this architecture" for name in sorted(given.keys() - wanted.keys())
    ]
    problems = foreign[:3] + missing[:3]
    if problems:
        more = len(foreign) + len(missing) - len(problems)
        told = "; ".join(problems) + (f"; and {more} more" if more else "")
        raise CheckpointError(
            f"{where} does not hold the weights of the model that it describes: {told}. Download it again, "
            "or give a model of a supported family"
        )
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {given[name].shape}, its configuration asks for {shape}; the "
                "file and its configuration do not belong together"
            )
