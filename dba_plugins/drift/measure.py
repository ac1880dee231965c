"""How far long-sequence attention is from exact attention: a run, what to compare, what was found.

The settings are the product of the lists in the request; a list that is left out holds the run's own value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from dba_core.attention.long_sequence.plan import plan_of
from dba_core.config.long_sequence import ResolvedLongSequence
from dba_core.data.corpus import Corpus
from dba_core.evaluation.metrics import FidelityAccumulator
from dba_core.report import Reporter
from dba_core.runs.evaluate import numbers_of, text_of
from dba_core.runs.load import Run
from dba_plugins.drift.findings import (
    CurvePoint,
    DriftFigures,
    DriftFindings,
    DriftOfSetting,
    JudgedThreshold,
)
from dba_plugins.drift.logits import (
    Approximation,
    SettingDrift,
    keys_per_query,
    measure_drift,
    resolved_setting,
)
from dba_plugins.drift.request import DriftRequest
from dba_plugins.drift.text import Stretches, choose_stretches

#: Points of a curve over positions.
CURVE_POINTS = 32
_ENDLESS = 1 << 62  # a length at which every setting reads memory tokens


def drift_of_run(run: Run, request: DriftRequest, reporter: Reporter) -> DriftFindings:
    """Measure; `request.run` is not read, for `run` is there already. The phase has a step for each pass
    through the model.

    Raises UnsupportedError for a run without a semantic path or a summarizer that it was not trained with,
    DataError for a text that is too short or cannot be read with the run's tokenizer.
    """
    settings = tuple(sweep(run, request))
    used = [resolved_setting(run.model, setting).config for setting in settings]
    corpus, tokens = text_of(run, request.data)
    stretches = choose_stretches(
        len(tokens),
        length=request.length,
        documents=request.documents,
        preferred_length=preferred_length(used, context=run.config.model.context),
    )
    reporter.phase("Comparing ...", len(stretches.offsets) * (1 + len(settings)))
    found = measure_drift(
        run.model,
        [tokens[offset : offset + stretches.length + 1] for offset in stretches.offsets],
        settings,
        on_pass=reporter.step,
    )
    reports = tuple(map(drift_of_setting, found))
    return _report(run, request, corpus, stretches, reports)


def sweep(run: Run, request: DriftRequest) -> Iterator[Approximation]:
    """Every combination of the request's lists over the run's own numbers."""
    own = run.config.model.train_long_seq.resolved(
        context=run.config.model.context, device=run.model.device.type
    )
    lists = (
        request.summarizer or (None,),
        request.mass_corrections or (own.mass_correction,),
        request.local_window or (own.local_window,),
        request.mem_block or (own.mem_block,),
    )
    for summarizer, mass_correction, local_window, mem_block in itertools.product(*lists):
        config = attrs.evolve(
            own,
            mass_correction=mass_correction,
            local_window=local_window,
            mem_block=mem_block,
            q_chunk=own.q_chunk if request.q_chunk is None else request.q_chunk,
        )
        yield Approximation(config, summarizer)


def preferred_length(settings: Sequence[ResolvedLongSequence], *, context: int) -> int:
    """The training context where at least a quarter of its positions reads memory tokens under every setting;
    else so much that half of them do.
    """
    first = max(plan_of(setting, _ENDLESS).exact_stop for setting in settings)
    return context if 4 * first <= 3 * context else 2 * first


def _report(
    run: Run,
    request: DriftRequest,
    corpus: Corpus,
    stretches: Stretches,
    settings: tuple[DriftOfSetting, ...],
) -> DriftFindings:
    exact = settings[0].all
    weights = run.model.tok_emb.weight
    return DriftFindings(
        run=str(run.folder.path),
        checkpoint=run.which,
        checkpoint_step=run.step,
        data=corpus.describe(),
        part="held-out" if request.data is None else "all",
        context=run.config.model.context,
        trained_with=trained_with(run),
        length=stretches.length,
        offsets=stretches.offsets,
        tokens=exact.tokens,
        device=str(weights.device),
        dtype=str(weights.dtype).removeprefix("torch."),
        exact_nll=exact.exact_nll,
        exact_keys_per_query=(stretches.length + 1) / 2,
        settings=settings,
        thresholds=tuple(JudgedThreshold.of(threshold, settings) for threshold in request.thresholds),
        notes=tuple(_notes(run, request, stretches, settings)),
    )


def trained_with(run: Run) -> str:
    """How attention was computed while the run was trained."""
    attention = run.model.attentions[0]
    config = attention.long_sequence
    if config is None or attention.summarizer is None:
        return "exact attention"
    numbers = numbers_of(resolved_setting(run.model, Approximation(config)))
    return f"long-sequence path from {config.threshold} tokens on ({numbers.text})"


def _notes(
    run: Run, request: DriftRequest, stretches: Stretches, settings: Sequence[DriftOfSetting]
) -> Iterator[str]:
    """What a reader of the figures must know."""
    context, length = run.config.model.context, stretches.length
    exact = [setting.numbers for setting in settings if setting.exact]
    if exact:
        which = "" if len(exact) == len(settings) else f" in {len(exact)} of {len(settings)} settings"
        yield (
            f"every query reads all {length:,} tokens at full resolution{which}, so the drift is 0 by "
            "construction; give a smaller --local-window and --q-chunk, or a larger --length"
        )
    if length > context:
        default = "" if request.length is not None else " (chosen so that half of them read memory tokens)"
        yield (
            f"{length:,} positions{default} are more than the {context:,} that this run was trained with: "
            "there exact attention itself extrapolates (see exact_nll along the curve)"
        )
    if not request.summarizer and run.model.attentions[0].summarizer is None:
        yield (
            f"the run has no summarizer of its own (it was trained with exact attention); memory tokens are "
            f"made by {settings[0].numbers.summarizer!r}"
        )


def drift_of_setting(drift: SettingDrift) -> DriftOfSetting:
    """The figures of one setting over all positions, beyond the window, per document and along positions."""
    total, plan = drift.total, drift.plan
    return DriftOfSetting(
        numbers=numbers_of(drift.used),
        exact=plan.exact,
        first_memory_position=None if plan.exact else plan.exact_stop,
        keys_per_query=keys_per_query(plan),
        all=figures(total, 0, plan.length),
        beyond_window=None if plan.exact else figures(total, plan.exact_stop, plan.length),
        documents=tuple(figures(document, 0, plan.length) for document in drift.documents),
        curve=tuple(
            CurvePoint(start=start, stop=stop, figures=figures(total, start, stop))
            for start, stop in curve_bins(plan.length)
        ),
    )


def curve_bins(length: int) -> list[tuple[int, int]]:
    """At most 32 stretches of positions, as even as whole numbers allow."""
    edges = np.linspace(0, length, min(CURVE_POINTS, length) + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def figures(accumulator: FidelityAccumulator, start: int, stop: int) -> DriftFigures:
    """Over positions start .. stop-1."""
    curves = accumulator.curves()
    tokens = curves["tokens"][start:stop]
    exact_nll = float((curves["reference_nll"][start:stop] * tokens).sum() / tokens.sum())
    return DriftFigures(**attrs.asdict(accumulator.result(start=start, stop=stop)), exact_nll=exact_nll)
