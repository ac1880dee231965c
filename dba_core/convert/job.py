"""The job of `dba convert`: load, calibrate, choose, rearrange, measure, and leave a run's folder.

The folder is one that `load_run` reads: `dba sample`, `dba eval` and the decode backends work on it. It is
filled beside its place and moved there at the end, so that an error leaves nothing half written.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from torch import Tensor

from dba_core.cache.bytes import bytes_per_token
from dba_core.config.data import DataConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig
from dba_core.config.training import EvaluationConfig, TrainingConfig
from dba_core.convert.calibration import calibrate
from dba_core.convert.comparators import Variant, variants
from dba_core.convert.decouple import Recipe, decouple, decoupled_config
from dba_core.convert.heal import Healing, heal
from dba_core.convert.load import load_source
from dba_core.convert.plots import Point, pair_map, pareto
from dba_core.convert.report import ConversionReport, VariantReport, markdown
from dba_core.convert.selection import select_pairs
from dba_core.convert.source import PLAIN, SourceModel
from dba_core.convert.texts import CALIBRATION, EVALUATION, Texts, read_texts
from dba_core.errors import CheckpointError, UsageError
from dba_core.evaluation.cached_loss import TextLoss, text_loss
from dba_core.model.language_model import LanguageModel
from dba_core.runs.folder import RunFolder, write_json, write_whole
from dba_core.runs.summary import as_plain
from dba_core.training.checkpoint_files import write_checkpoint
from dba_core.training.memory import peak_memory_bytes

TOKENIZER_FILE = "tokenizer.json"
DEFAULT_POLICY = KVCachePolicy.parse("ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32")
DEFAULT_CONTEXT = 2048


@attrs.frozen(kw_only=True)
class ConvertRequest:
    """context: tokens of a calibration sequence and of an evaluation window (None: the source's, 2048 at
    most). calibrate, evaluate: what `data.source` takes. tokenizer: None is the source's own.
    """

    model: Path
    out: Path
    recipe: Recipe
    policy: KVCachePolicy = DEFAULT_POLICY
    calibrate: str = CALIBRATION
    calibrate_tokens: int = 6 * DEFAULT_CONTEXT
    evaluate: tuple[str, ...] = EVALUATION
    eval_tokens: int = 4 * DEFAULT_CONTEXT
    context: int | None = None
    tokenizer: str | None = None
    comparators: bool = True
    heal_steps: int = 0


class ConvertReporter:
    """What the job tells while it runs; this one says nothing."""

    def phase(self, text: str, steps: int) -> None:
        """A phase of `steps` steps begins."""

    def step(self) -> None:
        """One step of the phase is done."""

    def note(self, text: str) -> None:
        """Something the user wants to know."""


def convert(request: ConvertRequest, reporter: ConvertReporter | None = None) -> ConversionReport:
    """Do it, and return the report that the folder holds as `conversion.json`.

    Raises UsageError for an output folder that exists and for a recipe that does not fit the model,
    CheckpointError and UnsupportedError as `load_source`, DataError for the texts.
    """
    reporter = ConvertReporter() if reporter is None else reporter
    if request.out.exists():
        raise UsageError(f"{request.out} exists already, and is left as it is; give --out another name")
    source = load_source(request.model)
    decoupled_config(source.config.attention, request.recipe)  # says at once what does not fit
    context = request.context or min(DEFAULT_CONTEXT, source.config.context)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=request.out.parent, prefix=f".{request.out.name}."))
    try:
        report = _Conversion(request, source, context, RunFolder(scratch), reporter).run()
        scratch.chmod(0o755)
        scratch.rename(request.out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


class _Conversion:
    """The phases, and the time that each took."""

    def __init__(
        self,
        request: ConvertRequest,
        source: SourceModel,
        context: int,
        folder: RunFolder,
        reporter: ConvertReporter,
    ) -> None:
        self.request, self.source, self.context = request, source, context
        self.folder, self.reporter = folder, reporter
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    def run(self) -> ConversionReport:
        recipe = self.request.recipe
        with self._phase("load"):
            self.reporter.phase(f"Reading {self.source.name} ...", 0)
            tokenizer = self._tokenizer()
            texts = self._texts(tokenizer)
            model = self.source.build()
        steps = len(texts.calibration) * len(model.attentions)
        with self._phase("calibrate"):
            self.reporter.phase(f"Calibrating on {texts.calibration.numel():,} tokens ...", steps)
            measured = calibrate(model, texts.calibration, on_step=lambda *_: self.reporter.step())
        with self._phase("convert"):
            self.reporter.phase("Rearranging the weights ...", 0)
            frequencies = model.attentions[0].rope.frequencies
            chosen = select_pairs(measured, frequencies, pairs=recipe.pairs, rule=recipe.rule, fit=recipe.fit)
            converted = decouple(model, measured, chosen, recipe)
        healed = self._heal(model, converted, texts)
        rows = self._measure(model, converted, chosen, texts)
        report = self._report(model, chosen, texts, rows, healed)
        self._write(converted, report, tokenizer)
        return report

    def _tokenizer(self) -> str:
        """The path of the tokenizer.json that the folder holds, or what the user named instead."""
        if self.request.tokenizer is not None:
            return self.request.tokenizer
        if self.source.tokenizer_json is None:
            raise CheckpointError(
                f"{self.source.path} has no tokenizer that can be read; give its tokenizer.json with "
                "--tokenizer"
            )
        path = self.folder.path / TOKENIZER_FILE
        path.write_text(self.source.tokenizer_json, encoding="utf-8")
        return str(path)

    def _texts(self, tokenizer: str) -> Texts:
        texts = read_texts(
            tokenizer=tokenizer,
            calibrate=self.request.calibrate,
            calibrate_tokens=self.request.calibrate_tokens,
            evaluate=self.request.evaluate,
            context=self.context,
        )
        vocab = self.source.config.vocab_size
        assert vocab is not None
        for corpus in (texts.calibration_corpus, *texts.evaluation):
            largest = int(corpus.tokens.max())
            if largest >= vocab:
                raise CheckpointError(
                    f"the tokenizer gives token {largest} on {corpus.name!r}, and the model knows 0 to "
                    f"{vocab - 1}: they do not belong together. Give the model's own tokenizer.json with "
                    "--tokenizer"
                )
        return texts

    def _heal(self, model: LanguageModel, converted: LanguageModel, texts: Texts) -> Healing | None:
        if not self.request.heal_steps:
            return None
        with self._phase("heal"):
            self.reporter.phase(
                "Healing: the source teaches the new projections ...", self.request.heal_steps
            )
            healing = heal(
                teacher=model,
                student=converted,
                sequences=texts.calibration,
                steps=self.request.heal_steps,
                on_step=self.reporter.step,
            )
        if not healing.kept:
            self.warnings.append(healing.text)
        self.reporter.note(healing.text)
        return healing

    def _measure(
        self, model: LanguageModel, converted: LanguageModel, chosen: Tensor, texts: Texts
    ) -> list[tuple[Variant, dict[str, TextLoss]]]:
        found = variants(
            model, converted, chosen, policy=self.request.policy, comparators=self.request.comparators
        )
        windows = sum(
            math.ceil(min(self.request.eval_tokens, len(corpus.tokens) - 1) / self.context)
            for corpus in texts.evaluation
        )
        with self._phase("evaluate"):
            self.reporter.phase("Measuring the loss ...", windows * len(found))
            return [(variant, self._losses(variant, texts)) for variant in found]

    def _losses(self, variant: Variant, texts: Texts) -> dict[str, TextLoss]:
        return {
            corpus.name: text_loss(
                variant.model,
                corpus.tokens,
                context=self.context,
                limit_tokens=self.request.eval_tokens,
                policy=variant.policy,
                on_window=self.reporter.step,
            )
            for corpus in texts.evaluation
        }

    def _report(
        self,
        model: LanguageModel,
        chosen: Tensor,
        texts: Texts,
        rows: list[tuple[Variant, dict[str, TextLoss]]],
        healed: Healing | None,
    ) -> ConversionReport:
        reference_variant, reference = rows[0]
        per_token = _cache_bytes(reference_variant)
        return ConversionReport(
            source=self.source.name,
            family=self.source.family,
            parameters=model.n_parameters,
            recipe=self.request.recipe,
            context=self.context,
            calibration={**texts.calibration_corpus.describe(), "left_out": []},
            calibration_tokens=texts.calibration.numel(),
            pairs=tuple(tuple(tuple(head) for head in layer) for layer in chosen.tolist()),
            variants=tuple(
                _variant_report(variant, losses, reference, per_token) for variant, losses in rows
            ),
            healed_steps=healed.steps if healed is not None and healed.kept else 0,
            seconds=dict(self.seconds),
            peak_memory_bytes=peak_memory_bytes(torch.device("cpu")),
            warnings=tuple(self.warnings),
        )

    def _write(self, converted: LanguageModel, report: ConversionReport, tokenizer: str) -> None:
        own = self.folder.path / TOKENIZER_FILE
        config = RunConfig(
            name=self.source.name,
            device="cpu",
            model=_for_runs(converted.config, self.context),
            data=DataConfig(
                source=self.request.evaluate[0], tokenizer=own.name if own.exists() else tokenizer
            ),
            training=TrainingConfig(steps=0, batch_size=1),
            evaluation=EvaluationConfig(tokens=self.request.eval_tokens, fidelity_tokens=256),
            kv_policy=self.request.policy,
            plugins=PLAIN,
        )
        write_checkpoint(
            self.folder.checkpoint,
            step=0,
            tensors={"model": converted.state_dict()},
            state={"step": 0, "converted_from": self.source.name},
            pointers=("best", "last"),
        )
        write_json(self.folder.path / "conversion.json", as_plain(report.to_dict()))
        write_whole(self.folder.path / "conversion.md", markdown(report))
        points = [
            Point(
                name=variant.name,
                bytes_per_token=variant.bytes_per_token,
                increase=variant.mean_perplexity_increase,
                own=variant.key.startswith("converted"),
            )
            for variant in report.variants
        ]
        pareto(
            self.folder.plots / "pareto.png", points, title=f"{report.source}: perplexity against cache size"
        )
        frequencies = self.source.config.attention.geo_head_dim
        assert frequencies is not None
        pair_map(
            self.folder.plots / "pairs.png",
            report.pairs,
            n_pairs=frequencies // 2,
            title=f"{report.source}: pairs that became semantic ({report.recipe.rule})",
        )
        write_json(self.folder.config_file, config.to_dict())  # last: with it the folder is a run

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _for_runs(config: ModelConfig, context: int) -> ModelConfig:
    """The context that was measured is the one that `dba eval` takes."""
    return attrs.evolve(
        config, context=context, train_long_seq=attrs.evolve(config.train_long_seq, enabled=False)
    )


def _cache_bytes(variant: Variant) -> int:
    shape = variant.model.attentions[0].shape
    return bytes_per_token(shape, variant.policy) * len(variant.model.attentions)


def _variant_report(
    variant: Variant, losses: dict[str, TextLoss], reference: dict[str, TextLoss], reference_bytes: int
) -> VariantReport:
    per_token = _cache_bytes(variant)
    return VariantReport(
        key=variant.key,
        name=variant.name,
        policy=variant.policy.short,
        bytes_per_token=per_token,
        ratio=reference_bytes / per_token,
        losses=losses,
        delta_nll={text: loss.nll - reference[text].nll for text, loss in losses.items()},
        delta_std_error={text: _paired_error(loss, reference[text]) for text, loss in losses.items()},
    )


def _paired_error(loss: TextLoss, reference: TextLoss) -> float:
    """Standard error of the mean difference over the same windows."""
    pairs = zip(loss.window_nll, reference.window_nll, strict=True)
    differences = torch.tensor([a - b for a, b in pairs], dtype=torch.float64)
    return float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
