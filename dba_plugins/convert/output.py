"""The folder that a conversion leaves: a run's, with the report of the conversion and its pictures.

Called by `dba_plugins.convert.job`.
"""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.data import DataConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.config.training import EvaluationConfig, TrainingConfig
from dba_core.data.special_tokens import SPECIAL_FILE
from dba_core.data.tokenizers import Tokenizer
from dba_core.documents import write_json, write_whole
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoices
from dba_core.runs.folder import RunFolder
from dba_core.training.checkpoint import write_checkpoint
from dba_core.training.fingerprint import settings_fingerprint
from dba_plugins.convert.plots import Point, pair_map, pareto
from dba_plugins.convert.report import ConversionReport, markdown

TOKENIZER_FILE = "tokenizer.json"


def write_output(
    folder: RunFolder,
    model: LanguageModel,
    report: ConversionReport,
    *,
    policy: KVCachePolicy,
    plugins: PluginChoices,
    tokenizer: Tokenizer,
    evaluate: str,
    eval_tokens: int,
) -> None:
    """Checkpoint, report, pictures, and last the configuration, with which the folder is a run.

    tokenizer: its special tokens are written too; a TOKENIZER_FILE in the folder goes before its name.
    evaluate, eval_tokens: the text that `dba eval` takes, and how much of it.
    """
    own = folder.path / TOKENIZER_FILE
    config = RunConfig(
        name=report.source,
        device="cpu",
        model=_for_runs(model.config, report.context),
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
        state={"step": 0, "converted_from": report.source, "fingerprint": _fingerprint(model, config)},
        pointers=("best", "last"),
    )
    write_json(folder.path / SPECIAL_FILE, tokenizer.special.to_document())
    write_json(folder.path / "conversion.json", report.to_dict())
    write_whole(folder.path / "conversion.md", markdown(report))
    _draw(folder, report)
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


def _draw(folder: RunFolder, report: ConversionReport) -> None:
    points = [
        Point(
            name=variant.name,
            bytes_per_token=variant.bytes_per_token,
            increase=variant.mean_perplexity_increase,
            own=variant.key.startswith("converted"),
        )
        for variant in report.variants
    ]
    pareto(folder.plots / "pareto.png", points, title=f"{report.source}: perplexity against cache size")
    if report.recipe is not None:
        pair_map(
            folder.plots / "pairs.png",
            report.pairs,
            n_pairs=report.n_pairs,
            title=f"{report.source}: pairs that became semantic ({report.recipe.rule})",
        )
