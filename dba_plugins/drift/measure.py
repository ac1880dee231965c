"""`dba drift` as a function: a run, what to compare, the report. Called by the command and by users.

The settings are the product of the lists in the request; a list that is left out holds the run's own value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import attrs

from dba_core.attention.long_sequence.plan import plan_of
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.data.corpus import Corpus
from dba_core.runs.evaluate import text_of
from dba_core.runs.load import Run
from dba_core.runs.long_sequence import numbers_of
from dba_plugins.drift.figures import setting_report
from dba_plugins.drift.logits import measure_drift, resolved_setting
from dba_plugins.drift.report import DriftReport, SettingReport
from dba_plugins.drift.text import Stretches, choose_stretches
from dba_plugins.drift.thresholds import Threshold

_ENDLESS = 1 << 62  # a length at which every setting reads memory tokens


@attrs.frozen(kw_only=True)
class DriftRequest:
    """What to compare, on what. None and () are "as in the run", and its held-out text.

    length: positions of a document; documents: their number. mem_block, local_window, summarizer,
    mass_correction: lists, of which every combination is measured.
    """

    data: str | None = None
    length: int | None = None
    documents: int | None = None
    mem_block: tuple[int, ...] = ()
    local_window: tuple[int, ...] = ()
    summarizer: tuple[str, ...] = ()
    mass_correction: tuple[bool, ...] = ()
    q_chunk: int | None = None
    thresholds: tuple[Threshold, ...] = ()


def drift_of_run(
    run: Run, request: DriftRequest, *, on_pass: Callable[[int, int], None] | None = None
) -> DriftReport:
    """Measure. on_pass: told (passes done, passes in all) after each pass through the model.

    Raises UnsupportedError for a run without a semantic path or a summarizer that it was not trained with,
    DataError for a text that is too short or cannot be read with the run's tokenizer.
    """
    settings = [resolved_setting(run.model, setting) for setting in sweep(run, request)]
    corpus, tokens = text_of(run, request.data)
    stretches = choose_stretches(
        len(tokens),
        length=request.length,
        documents=request.documents,
        preferred_length=preferred_length(settings, context=run.config.model.context),
    )
    total, passes = len(stretches.offsets) * (1 + len(settings)), itertools.count(1)
    found = measure_drift(
        run.model,
        [tokens[offset : offset + stretches.length + 1] for offset in stretches.offsets],
        settings,
        on_pass=None if on_pass is None else lambda: on_pass(next(passes), total),
    )
    reports = tuple(setting_report(drift, own=run.model.summarizers) for drift in found)
    return _report(run, request, corpus, stretches, reports)


def sweep(run: Run, request: DriftRequest) -> Iterator[LongSequenceConfig]:
    """Every combination of the request's lists over the run's own numbers."""
    own = attrs.evolve(run.config.model.train_long_seq, mem_summarizer=None)
    own = own.resolved(context=run.config.model.context, device=run.model.device.type)
    lists = (
        request.summarizer or (None,),
        request.mass_correction or (own.mass_correction,),
        request.local_window or (own.local_window,),
        request.mem_block or (own.mem_block,),
    )
    for summarizer, mass_correction, local_window, mem_block in itertools.product(*lists):
        yield attrs.evolve(
            own,
            mem_summarizer=summarizer,
            mass_correction=mass_correction,
            local_window=local_window,
            mem_block=mem_block,
            q_chunk=own.q_chunk if request.q_chunk is None else request.q_chunk,
        )


def preferred_length(settings: Sequence[LongSequenceConfig], *, context: int) -> int:
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
    settings: tuple[SettingReport, ...],
) -> DriftReport:
    exact = settings[0].all
    weights = run.model.tok_emb.weight
    return DriftReport(
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
        thresholds=tuple(threshold.judge(settings) for threshold in request.thresholds),
        notes=tuple(_notes(run, request, stretches, settings)),
    )


def trained_with(run: Run) -> str:
    """How attention was computed while the run was trained."""
    attention = run.model.attentions[0]
    config = attention.long_sequence
    if config is None or attention.summarizer is None:
        return "exact attention"
    setting = resolved_setting(run.model, attrs.evolve(config, mem_summarizer=None))
    numbers = numbers_of(setting, own=run.model.summarizers)
    return f"long-sequence path from {config.threshold} tokens on ({numbers.text})"


def _notes(
    run: Run, request: DriftRequest, stretches: Stretches, settings: Sequence[SettingReport]
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
