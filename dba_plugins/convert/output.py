"""The folder that a conversion leaves: a run's, with the report of the conversion and its pictures."""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import DataConfig, EvaluationConfig, RunConfig, TrainingConfig
from dba_core.data.special_tokens import SPECIAL_FILE
from dba_core.data.tokenizers import Tokenizer
from dba_core.documents import write_json, write_whole
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoices
from dba_core.report import Report
from dba_core.runs.folder import RunFolder
from dba_core.training.checkpoint import write_checkpoint
from dba_core.training.fingerprint import settings_fingerprint

TOKENIZER_FILE = "tokenizer.json"


def write_output(
    folder: RunFolder,
    model: LanguageModel,
    report: Report,
    *,
    name: str,
    context: int,
    policy: KVCachePolicy,
    plugins: PluginChoices,
    tokenizer: Tokenizer,
    evaluate: str,
    eval_tokens: int,
) -> None:
    """Checkpoint, report, pictures, and last the configuration, with which the folder is a run.

    tokenizer: its special tokens are written too; a TOKENIZER_FILE in the folder goes before its name.
    name: of the run. context: the one that was measured, which `dba eval` takes. evaluate, eval_tokens: the
    text that it takes, and how much of it.
    """
    own = folder.path / TOKENIZER_FILE
    config = RunConfig(
        name=name,
        device="cpu",
        model=_for_runs(model.config, context),
        data=DataConfig(source=evaluate, tokenizer=own.name if own.exists() else tokenizer.name),
        training=TrainingConfig(steps=0, batch_size=1),
        evaluation=EvaluationConfig(tokens=eval_tokens, fidelity_tokens=256),
        kv_policy=policy,
        plugins=plugins,
    )
    write_checkpoint(
        folder.checkpoint,
        step=0,
        tensors={"model": model.state_dict()},
        state={"step": 0, "converted_from": name, "fingerprint": _fingerprint(model, config)},
        pointers=("best", "last"),
    )
    write_json(folder.path / SPECIAL_FILE, tokenizer.special.to_document())
    write_json(folder.path / f"{report.name}.json", report.to_dict())
    pictures = [f"{folder.plots.name}/{path.name}" for path in report.draw(folder.plots)]
    write_whole(folder.path / f"{report.name}.md", report.markdown(pictures))
    write_json(folder.config_file, config.to_dict())


def _fingerprint(model: LanguageModel, config: RunConfig) -> dict[str, Any]:
    """What `load_run` holds against the configuration beside the weights."""
    device = model.device.type
    settings = config.model.resolved()
    return settings_fingerprint(config, settings=settings, attentions=model.attentions, device=device)


def _for_runs(config: ModelConfig, context: int) -> ModelConfig:
    """The context that was measured is the one that `dba eval` takes."""
    return attrs.evolve(
        config, context=context, train_long_seq=attrs.evolve(config.train_long_seq, enabled=False)
    )
