"""The job of `dba convert`: load, calibrate, choose, rearrange, measure, and leave a run's folder.

The folder is one that `load_run` reads: `dba sample`, `dba eval` and the decode backends work on it. It is
filled beside its place and moved there at the end, so that an error leaves nothing half written.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from torch import Tensor

from dba_core.command import command_line
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ResolvedModel
from dba_core.data.corpus import Corpus
from dba_core.data.tokenizers import Tokenizer, load_tokenizer, special_of, with_special
from dba_core.errors import CheckpointError, DataError, UsageError
from dba_core.free_memory import peak_memory_bytes, require_memory
from dba_core.model.language_model import LanguageModel
from dba_core.model.pretrained import PretrainedModel, open_pretrained
from dba_core.report import Report, Reporter
from dba_core.runs.estimate import least_parameters
from dba_core.runs.folder import RunFolder, one_writer
from dba_plugins.convert.calibration import Calibration, calibrate
from dba_plugins.convert.comparators import Variant, as_it_is, variants
from dba_plugins.convert.decouple import PLAIN, Recipe, decouple, decoupled_config, pairs_of
from dba_plugins.convert.findings import ConversionFindings, SearchFindings, report_of, variant_findings
from dba_plugins.convert.heal import Healing, heal
from dba_plugins.convert.output import TOKENIZER_FILE, write_output
from dba_plugins.convert.recipe_search import (
    RecipeSearch,
    goal_of,
    most_comparisons,
    recipe_of,
    recipes_of,
    scope_of,
    search_recipe,
)
from dba_plugins.convert.request import (
    CALIBRATION,
    CALIBRATION_TOKENS,
    DEFAULT_CONTEXT,
    ConvertRequest,
)
from dba_plugins.convert.text_loss import TextLoss, text_loss
from dba_plugins.convert.texts import CalibrationText, read_calibration, read_evaluation
from dba_plugins.tune.distance import Reference

#: Tokens that recipes and policies are compared on.
SEARCH_TOKENS = 2048


def convert(request: ConvertRequest, reporter: Reporter) -> Report:
    """Do it, and return the report that the folder holds as `conversion.json` and `conversion.md`.

    Raises FolderInUseError where another process makes this output folder, UsageError for an output folder
    that exists and for a recipe that does not fit the model, SourceError as `open_pretrained`, DataError for
    a damaged model and for the texts, SearchError where nothing keeps the goal of a search.
    """
    with _wrong_input():
        report = _convert(request, reporter)
    for warning in report.figures["warnings"]:
        reporter.warning(warning)
    reporter.note(f"Wrote {request.out}")
    return report


@contextlib.contextmanager
def _wrong_input() -> Iterator[None]:
    """Within: a model that is damaged is wrong input, as a text is."""
    try:
        yield
    except CheckpointError as error:
        raise DataError(str(error)) from error


def _convert(request: ConvertRequest, reporter: Reporter) -> Report:
    out = request.out
    _refuse_existing(out)
    policy = request.policy  # a wrong one is refused before anything is read
    source = open_pretrained(request.model)
    job = _Conversion(request, source, policy, reporter)
    _check_memory(source.config, copies=1 if request.keep else 2, name=source.opened.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(out.parent / f".{out.name}.lock", folder=out):
        _refuse_existing(out)  # another process may have finished it meanwhile
        _remove_dead(out)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            report = job.run(RunFolder(scratch))
            scratch.chmod(0o755)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return report


def _check_memory(model: ResolvedModel, *, copies: int, name: str) -> None:
    """The source's weights, in float32, and the converted ones beside them must fit."""
    need = 4 * least_parameters(model) * copies
    what = f"the conversion of {name} ({copies} model(s) of float32 weights)"
    require_memory(need, device="cpu", what=what, smaller="the model: take a smaller one of its family")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UsageError(f"{out} exists already, and is left as it is; give --out another name")


def _remove_dead(out: Path) -> None:
    """What conversions into this folder left that were killed."""
    scratch = re.compile(re.escape(f".{out.name}.") + "[a-z0-9_]{8}")
    for path in out.parent.iterdir():
        if scratch.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _check_fit(request: ConvertRequest, source: PretrainedModel) -> None:
    """Say at once what does not fit, before anything is measured."""
    attention = source.config.attention
    if request.keep:
        return
    if attention.shape.sem_head_dim or source.plugins != PLAIN:
        raise UsageError(
            f"{source.path} has a semantic path, a gate or a null token already, and only attention that is "
            "rotated throughout can be decoupled. Give --keep to make a run's folder of it as it is"
        )
    if goal_of(request) is None:
        decoupled_config(attention, recipe_of(request))
    else:
        recipes_of(attention, scope_of(request))


@attrs.frozen(kw_only=True, eq=False)
class _Decoupled:
    """What a decoupling came to. chosen: pairs [layers,G,pairs]."""

    model: LanguageModel
    chosen: Tensor
    text: CalibrationText
    search: RecipeSearch | None
    healing: Healing | None


class _Conversion:
    """The phases, and the time that each took."""

    def __init__(
        self, request: ConvertRequest, source: PretrainedModel, policy: KVCachePolicy, reporter: Reporter
    ) -> None:
        """Raises UsageError for a recipe that does not fit the model."""
        _check_fit(request, source)
        self.request, self.source, self.reporter = request, source, reporter
        self.recipe, self.policy = None if request.keep else recipe_of(request), policy
        self.context = request.context or min(DEFAULT_CONTEXT, source.config.context)
        self.target_context = request.target_context or self.context
        self.vocab_size = source.opened.description.vocab_size
        self.seconds: dict[str, float] = {}

    def run(self, folder: RunFolder) -> Report:
        """Fill `folder`."""
        for note in self.source.opened.notes:
            self.reporter.note(note)
        with self._phase("load"):
            self.reporter.phase(f"Reading {self.source.opened.name} ...")
            tokenizer = self._tokenizer(folder)
            evaluation = read_evaluation(
                self.request.evaluate, tokenizer=tokenizer, vocab_size=self.vocab_size
            )
            text = self._calibration_text(tokenizer, evaluation)
            model = self.source.build()
            # what the files take of memory is let go with the last one that reads them
            self.source = attrs.evolve(self.source, opened=attrs.evolve(self.source.opened, weights={}))
        if text is None or self.recipe is None:
            kept = self._found(model, None, self._measure(as_it_is(model, self.policy), evaluation))
            return self._write(folder, model, kept, tokenizer)
        made = self._decouple(model, text, self.recipe)
        compared = variants(
            model,
            made.model,
            made.chosen,
            policy=self.policy,
            comparators=self.request.comparators is not False,
        )
        found = self._found(model, made, self._measure(compared, evaluation))
        return self._write(folder, made.model, found, tokenizer)

    def _tokenizer(self, folder: RunFolder) -> Tokenizer:
        """The source's, whose tokenizer.json the folder then holds, or what the user named instead; with the
        source's special tokens.
        """
        source = str(self.source.path)
        tokenizer = load_tokenizer(self._tokenizer_name(folder))
        special = special_of(self.source.opened.tokenizer_config, tokenizer, source=source)
        special = special.chosen(bos=self.request.bos, eos=self.request.eos)
        special.check(vocab_size=self.vocab_size, where=source)
        return with_special(tokenizer, special)

    def _tokenizer_name(self, folder: RunFolder) -> str:
        path = folder.path / TOKENIZER_FILE
        given = self.request.tokenizer
        if given is not None:
            if not Path(given).is_file():
                return given
            load_tokenizer(given)  # an error names the file that was given
            shutil.copyfile(given, path)
            return str(path)
        if self.source.opened.tokenizer_json is None:
            raise CheckpointError(
                f"{self.source.path} has no tokenizer that can be read; give its tokenizer.json with "
                "--tokenizer"
            )
        path.write_text(self.source.opened.tokenizer_json, encoding="utf-8")
        return str(path)

    def _calibration_text(
        self, tokenizer: Tokenizer, evaluation: tuple[Corpus, ...]
    ) -> CalibrationText | None:
        if self.recipe is None:
            return None
        return read_calibration(
            self.request.calibrate or CALIBRATION,
            unlike=evaluation,
            tokens=self.request.calibrate_tokens or CALIBRATION_TOKENS,
            tokenizer=tokenizer,
            vocab_size=self.vocab_size,
            context=self.context,
        )

    def _decouple(self, model: LanguageModel, text: CalibrationText, recipe: Recipe) -> _Decoupled:
        """Calibrate, search where that is wanted, convert, heal."""
        with self._phase("calibrate"):
            steps = len(text.sequences) * len(model.attentions)
            self.reporter.phase(f"Calibrating on {text.sequences.numel():,} tokens ...", steps)
            measured = calibrate(model, text.sequences, on_step=lambda *_: self.reporter.step())
        found = self._search(model, measured, text)
        if found is not None:
            chosen = found.result.require(found.goal, "recipe").candidate.key
            self.recipe, self.policy, recipe = chosen.recipe, chosen.policy, chosen.recipe
        with self._phase("convert"):
            self.reporter.phase("Rearranging the weights ...")
            pairs = pairs_of(model, measured, recipe)
            converted = decouple(model, measured, pairs, recipe)
        return _Decoupled(
            model=converted,
            chosen=pairs,
            text=text,
            search=found,
            healing=self._heal(model, converted, text),
        )

    def _search(
        self, model: LanguageModel, measured: Calibration, text: CalibrationText
    ) -> RecipeSearch | None:
        goal, scope = goal_of(self.request), scope_of(self.request)
        if goal is None:
            return None
        if len(text.between) < 3:
            raise UsageError(
                f"calibration reads all of {text.corpus.name!r}, and a search needs text that it has not "
                "read; give a longer text to --calibrate, or fewer --calibrate-tokens"
            )
        with self._phase("search"):
            reference = Reference(
                model,
                text.between,
                context=self.context,
                limit_tokens=min(SEARCH_TOKENS, len(text.between) - 1),
            )
            most = most_comparisons(self.source.config.attention, scope)
            self.reporter.phase(f"Searching for {goal.text} ...", most * reference.windows)
            return search_recipe(
                model,
                reference,
                goal,
                scope,
                context=self.target_context,
                convert=lambda recipe: decouple(model, measured, pairs_of(model, measured, recipe), recipe),
                on_window=self.reporter.step,
            )

    def _heal(self, model: LanguageModel, converted: LanguageModel, text: CalibrationText) -> Healing | None:
        steps = self.request.heal_steps
        if not steps:
            return None
        with self._phase("heal"):
            self.reporter.phase("Healing: the source teaches the new projections ...", steps)
            healing = heal(
                teacher=model,
                student=converted,
                sequences=text.sequences,
                steps=steps,
                on_step=self.reporter.step,
            )
        self.reporter.note(healing.text)
        return healing

    def _measure(
        self, found: list[Variant], evaluation: tuple[Corpus, ...]
    ) -> list[tuple[Variant, dict[str, TextLoss]]]:
        windows = sum(
            math.ceil(min(self.request.eval_tokens, len(corpus.tokens) - 1) / self.context)
            for corpus in evaluation
        )
        with self._phase("evaluate"):
            self.reporter.phase("Measuring the loss ...", windows * len(found))
            return [(variant, self._losses(variant, evaluation)) for variant in found]

    def _losses(self, variant: Variant, evaluation: tuple[Corpus, ...]) -> dict[str, TextLoss]:
        losses = {
            corpus.name: text_loss(
                variant.model,
                corpus.tokens,
                context=self.context,
                limit_tokens=self.request.eval_tokens,
                policy=variant.policy,
                on_window=self.reporter.step,
            )
            for corpus in evaluation
        }
        for name, loss in losses.items():
            if not math.isfinite(loss.perplexity):
                raise CheckpointError(
                    f"the loss of {variant.name!r} on {name!r} is {loss.nll:g} nats per token: its numbers "
                    f"overflow. The weights of {self.source.path} are finite, but too large to compute with; "
                    "get the model again"
                )
        return losses

    def _found(
        self,
        model: LanguageModel,
        made: _Decoupled | None,
        rows: list[tuple[Variant, dict[str, TextLoss]]],
    ) -> ConversionFindings:
        healing = None if made is None else made.healing
        pairs = [] if made is None else made.chosen.tolist()
        return ConversionFindings(
            source=self.source.opened.name,
            family=self.source.opened.family,
            files=self.source.opened.files,
            notes=self.source.opened.notes,
            parameters=model.n_parameters,
            recipe=self.recipe,
            search=None if made is None or made.search is None else SearchFindings.of(made.search),
            context=self.context,
            target_context=self.target_context,
            calibration=None if made is None else {**made.text.corpus.describe(), "left_out": []},
            calibration_tokens=0 if made is None else made.text.sequences.numel(),
            pairs=tuple(tuple(tuple(head) for head in layer) for layer in pairs),
            n_pairs=self.source.config.attention.shape.geo_head_dim // 2,
            variants=variant_findings(rows, context=self.context, target_context=self.target_context),
            healed_steps=healing.steps if healing is not None and healing.kept else 0,
            seconds=dict(self.seconds),
            peak_memory_bytes=peak_memory_bytes(torch.device("cpu")),
            warnings=(healing.text,) if healing is not None and not healing.kept else (),
        )

    def _write(
        self, folder: RunFolder, model: LanguageModel, found: ConversionFindings, tokenizer: Tokenizer
    ) -> Report:
        command = command_line("convert", self.request)
        report = report_of(found, command=command, out=self.request.out)
        write_output(
            folder,
            model,
            report,
            name=found.source,
            context=found.context,
            policy=self.policy,
            plugins=self.source.plugins,
            tokenizer=tokenizer,
            evaluate=self.request.evaluate[0],
            eval_tokens=self.request.eval_tokens,
        )
        return report

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
