"""Who is entered for `dba bench model`: each is built when it is asked for, so that one can be alone."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import DataConfig
from dba_core.data.corpus import load_corpus
from dba_core.data.tokenizers import Tokens, check_fit, load_tokenizer
from dba_core.errors import DataError, UsageError
from dba_core.model.language_model import LanguageModel
from dba_core.model.pretrained import PretrainedModel, open_pretrained
from dba_core.report import Reporter
from dba_core.runs.choosing import RunChoice
from dba_core.runs.estimate import policy_of
from dba_core.runs.evaluate import text_of
from dba_core.runs.folder import DEFAULT_ROOT, LATEST, RunFolder, find_run, read_resolved, runs_in
from dba_core.runs.load import Run
from dba_plugins.bench.model import llama, llama_cpp
from dba_plugins.bench.model.contestants import (
    GPT,
    RECOMPUTED,
    Contestant,
    Ours,
    ours_name,
    plain_gpt,
    recomputing,
)
from dba_plugins.bench.model.request import FP16, LLAMA_CPP, PLAIN_GPT, RECOMPUTING, TRANSFORMERS, ModelBench

Make = Callable[[], Contestant]


@attrs.frozen(kw_only=True, eq=False)
class Entrants:
    """title: of the model. make: by name. context: that it was trained with. text: the held-out tokens, None
    where there is no text. notes: who was left out, and what they are.
    """

    title: str
    make: dict[str, Make]
    vocab_size: int
    context: int
    text: Callable[[], Tokens | None]
    notes: tuple[str, ...]


def entrants(request: ModelBench, reporter: Reporter) -> Entrants:
    """Of a pretrained model and what it was converted to, or of a run."""
    if not _is_run(request.source):
        return _of_source(request, open_pretrained(request.source), reporter)
    if request.run is not None:
        raise UsageError(
            f"{request.source} is a run, and {request.run} beside it; a run is measured alone: leave the "
            "second out, or give the model that it was converted from first"
        )
    return _of_run(request, reporter)


def _is_run(text: str) -> bool:
    path = Path(text)
    if path.exists():
        return RunFolder(path).is_run
    return path.name == LATEST or any(text in run.path.name for run in runs_in(DEFAULT_ROOT))


def _of_source(request: ModelBench, source: PretrainedModel, reporter: Reporter) -> Entrants:
    notes: list[str] = []
    make = _ours(
        request, "source", functools.cache(functools.partial(_built, source)), _policies(request, ())
    )
    text: Callable[[], Tokens | None] = functools.partial(_text_of_source, request, source)
    if request.run is not None:
        run = _run(request, request.run, reporter, vocab_size=source.config.vocab_size)
        own = policy_of(read_resolved(find_run(request.run, weights=request.checkpoint)))
        make |= _ours(request, "converted", lambda each: run(each).model, _policies(request, (own,)))
        text = _text_of_run(request, run)
    elif request.data is None:
        notes.append("no loss: give RUN, or a text with --data")
    path = Path(request.source)
    notes += _add_transformers(make, request, functools.cache(lambda: llama.llama_of(source)), trained=True)
    if request.takes(LLAMA_CPP):
        reason = llama_cpp.why_left_out(path)
        for flash in (False, True) if reason is None else ():
            name = llama_cpp.name_of(flash=flash)
            make[name] = functools.partial(llama_cpp.LlamaCpp, path, source.config, flash=flash)
        notes.append(reason or llama_cpp.what_it_is())
    return Entrants(
        title=path.name,
        make=make,
        vocab_size=source.config.vocab_size,
        context=source.config.context,
        text=text,
        notes=tuple(notes),
    )


def _of_run(request: ModelBench, reporter: Reporter) -> Entrants:
    load = _run(request, request.source, reporter)
    first = _formats(request)[0]
    run = load(first)
    config = run.model.config
    make = _ours(request, "run", lambda each: load(each).model, _policies(request, (run.kv_policy,)))
    notes = _add_transformers(
        make, request, functools.cache(lambda: llama.build_llama(config, seed=0)), trained=False
    )
    if not notes and request.takes(TRANSFORMERS):
        notes.append("transformers: a Llama of the run's sizes, with random weights")
    if request.takes(RECOMPUTING):
        make[RECOMPUTED] = lambda: recomputing(load(first).model)
    if request.takes(PLAIN_GPT):
        if config.d_model % config.attention.n_heads:
            heads = config.attention.n_heads
            notes.append(f"plain GPT: left out, {heads} heads do not divide the width {config.d_model}")
        else:
            make[GPT] = lambda: plain_gpt(load(first).model)
    return Entrants(
        title=f"the run {run.folder.path.name}",
        make=make,
        vocab_size=config.vocab_size,
        context=config.context,
        text=_text_of_run(request, load),
        notes=tuple(notes),
    )


def _run(
    request: ModelBench, name: str, reporter: Reporter, *, vocab_size: int | None = None
) -> Callable[[str | None], Run]:
    """Loads a run with its weights in a format, once for each. vocab_size: of the model that it must fit."""
    folder = find_run(name, weights=request.checkpoint)
    choice = RunChoice(
        run=str(folder.path),
        checkpoint=request.checkpoint,
        device="cpu",
        allow_drift=request.allow_drift,
    )

    @functools.cache
    def load(weights: str | None) -> Run:
        run = choice.load(reporter, weights)
        found = run.model.config.vocab_size
        if vocab_size is not None and found != vocab_size:
            raise UsageError(
                f"{request.source} has {vocab_size} tokens and {folder.path} {found}: the one was not "
                "converted from the other"
            )
        return run

    return load


def _policies(request: ModelBench, own: tuple[KVCachePolicy, ...]) -> list[KVCachePolicy]:
    """Those that were asked for, or float16 and the run's own; each once."""
    asked = [KVCachePolicy.parse(text) for text in request.kv_policy]
    return list({each.short: each for each in asked or (KVCachePolicy.parse(FP16), *own)}.values())


def _formats(request: ModelBench) -> tuple[str | None, ...]:
    return request.weights or (None,)


def _ours(
    request: ModelBench,
    name: str,
    load: Callable[[str | None], LanguageModel],
    policies: Iterable[KVCachePolicy],
) -> dict[str, Make]:
    """load: a model with its weights in a format, None for as they are."""
    return {
        ours_name(name, policy, weights=each): functools.partial(_our, name, load, each, policy)
        for each, policy in product(_formats(request), tuple(policies))
    }


def _our(
    name: str, load: Callable[[str | None], LanguageModel], weights: str | None, policy: KVCachePolicy
) -> Ours:
    return Ours(name, load(weights), policy)


def _built(source: PretrainedModel, weights: str | None) -> LanguageModel:
    model = source.build()
    if weights is not None:
        model.pack_weights(weights)
    return model


def _add_transformers(
    make: dict[str, Make], request: ModelBench, load: Callable[[], Any], *, trained: bool
) -> list[str]:
    """Enter them; why they are left out."""
    if not request.takes(TRANSFORMERS):
        return []
    reason = llama.why_left_out()
    if reason is not None:
        return [reason]
    for variant in llama.VARIANTS:
        make[variant.name] = functools.partial(_transformers, load, variant, trained=trained)
    return []


def _transformers(load: Callable[[], Any], variant: llama.Variant, *, trained: bool) -> Contestant:
    return llama.TransformersLlama(load(), variant, trained=trained)


def _text_of_run(request: ModelBench, run: Callable[[str | None], Run]) -> Callable[[], Tokens]:
    return lambda: text_of(run(_formats(request)[0]), request.data)[1]


def _text_of_source(request: ModelBench, source: PretrainedModel) -> Tokens | None:
    """The text at --data, by the tokenizer in the source."""
    if request.data is None:
        return None
    if source.opened.tokenizer_json is None:
        raise DataError(
            f"{source.path} has no tokenizer that can be read; give a RUN beside it, without --data"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(source.opened.tokenizer_json, encoding="utf-8")
        tokenizer = load_tokenizer(str(path))
        data = DataConfig(source=request.data, tokenizer=tokenizer.name)
        corpus = load_corpus(data, context=1, tokenizer=tokenizer)
    tokens = corpus.as_read(corpus.tokens)
    check_fit(tokens, tokenizer=tokenizer, vocab_size=source.config.vocab_size)
    return tokens
