"""What is measured on trained weights: held-out loss, and fidelity of a KV policy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import attrs

from dba_core.attention.long_sequence.evaluation import UsedLongSequence
from dba_core.attention.long_sequence.plan import plan_of
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.run import RunConfig
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.data.tokenizers import Tokenizer, Tokens, check_fit, with_special
from dba_core.errors import CheckpointError, UsageError
from dba_core.evaluation.metrics import HeldOut, PolicyFidelity, held_out_loss, policy_fidelity
from dba_core.model.language_model import LanguageModel
from dba_core.runs.estimate import kv_memory
from dba_core.runs.load import Run
from dba_core.training.step import autocast

#: Raised when a field of summary.json changes its meaning or goes away.
SCHEMA = 1
#: What becomes of the null token in decoding.
INACTIVE, UNFUSED, FUSED = "Inactive", "Active (Unfused)", "Active (Fused)"


def evaluate_loss(
    model: LanguageModel, tokens: Tokens, tokenizer: Tokenizer | None, config: RunConfig
) -> HeldOut:
    """The loss over `evaluation.tokens` of the held-out tokens (all of them where that is None). tokenizer:
    counts the bytes for bits per byte, None for none.
    """
    with autocast(model.device, config.dtype):
        found = held_out_loss(
            model,
            tokens,
            context=config.model.context,
            batch_size=config.training.batch_size,
            limit_tokens=config.evaluation.tokens,
            tokenizer=tokenizer,
        )
    if not math.isfinite(found.perplexity):
        raise CheckpointError(
            f"the loss of the model is {found.loss:g} nats per token: its numbers overflow. Its weights are "
            "damaged, or its training diverged; take another checkpoint (which=), or train again"
        )
    return found


def evaluate_loss_as_trained(
    model: LanguageModel, tokens: Tokens, tokenizer: Tokenizer | None, config: RunConfig
) -> HeldOut | None:
    """The same with the long-sequence path; None where training at this context is exact throughout."""
    if model.attentions[0].summarizer is None:
        return None
    with model.long_sequence(config.model.train_long_seq) as used:
        exact = plan_of(used.config, config.model.context).exact
        return None if exact else evaluate_loss(model, tokens, tokenizer, config)


def evaluate_fidelity(
    model: LanguageModel, tokens: Tokens, policy: KVCachePolicy, config: RunConfig
) -> PolicyFidelity | None:
    """The policy against an fp32 cache over `evaluation.fidelity_tokens` tokens; None where that is 0."""
    if config.evaluation.fidelity_tokens == 0:
        return None
    return policy_fidelity(
        model,
        tokens,
        context=config.model.context,
        policy=policy,
        n_tokens=config.evaluation.fidelity_tokens,
        batch_size=config.training.batch_size,
    )


@attrs.frozen(kw_only=True)
class LongSequenceNumbers:
    """The numbers that a forward pass used."""

    summarizer: str
    mem_block: int
    local_window: int
    q_chunk: int
    mass_correction: bool

    @property
    def text(self) -> str:
        return (
            f"summarizer {self.summarizer}, mem_block {self.mem_block}, local_window {self.local_window}, "
            f"q_chunk {self.q_chunk}, mass correction {'on' if self.mass_correction else 'off'}"
        )


def numbers_of(used: UsedLongSequence) -> LongSequenceNumbers:
    """Of what `LanguageModel.long_sequence` gives."""
    config = used.config
    return LongSequenceNumbers(
        summarizer=used.summarizer,
        mem_block=config.mem_block,
        local_window=config.local_window,
        q_chunk=config.q_chunk,
        mass_correction=config.mass_correction,
    )


def null_attention(model: LanguageModel, policy: KVCachePolicy, *, device: str) -> str:
    """What becomes of the null token in decoding from a cache of this policy on `device`, in every layer."""
    fused = []
    for attention in model.attentions:
        if attention.null_token is not None:
            chosen = attention.selection_without_cache(policy, capacity=model.config.context, device=device)
            fused.append(chosen.build().fused_null)
    if not fused:
        return INACTIVE
    return FUSED if all(fused) else UNFUSED


@attrs.frozen(kw_only=True)
class RunEvaluation:
    """What `evaluate_run` answers. `schema` as in the summary; losses in nats per token.

    long_sequence: the approximation under which the held-out loss was taken, its `numbers` in words in
    `text`; `exact`: no query of a window reads a memory token. None is exact attention. weights: the `format`
    that they are packed by, None for none, and their `bytes` in memory.
    """

    run: str
    checkpoint: str
    checkpoint_step: int
    data: dict[str, Any]
    held_out: HeldOut
    long_sequence: dict[str, Any] | None
    kv_policy: str
    kv_memory: dict[str, Any]
    null_attention: str
    fidelity: PolicyFidelity | None
    weights: dict[str, Any]
    schema: int = SCHEMA


def evaluate_run(
    run: Run,
    *,
    data: str | None = None,
    policy: KVCachePolicy | None = None,
    long_seq: bool = False,
    bos: bool | None = None,
    eos: bool | None = None,
) -> RunEvaluation:
    """Evaluate a run on its held-out text or on all of the corpus at `data`, under its policy or `policy`.

    long_seq: take the held-out loss with the long-sequence path and the run's numbers. bos, eos: whether the
    text begins and ends with the model's special tokens; None is as its tokenizer has it. Raises DataError
    for a corpus that cannot be read with the run's tokenizer, UsageError for a special token that the model
    or the data has not, UnsupportedError for a path that the run has not.
    """
    config = run.config
    policy = run.kv_policy if policy is None else policy
    special = run.tokenizer.special.chosen(bos=bos, eos=eos)
    corpus, tokens = text_of(run, data, tokenizer=with_special(run.tokenizer, special))
    if not corpus.is_text and (bos, eos) != (None, None):
        raise UsageError(f"{corpus.name!r} is a token array, taken as it is; leave bos= and eos= out")
    model = run.model
    null = null_attention(model, policy, device=str(model.device))
    with _attention(run, long_seq=long_seq) as long_sequence:
        held_out = evaluate_loss(model, tokens, corpus.byte_counter, config)
    return RunEvaluation(
        run=str(run.folder.path),
        checkpoint=run.which,
        checkpoint_step=run.step,
        data=corpus.describe(),
        held_out=held_out,
        long_sequence=long_sequence,
        kv_policy=policy.short,
        kv_memory=kv_memory(
            config.model.attention.shape, config.model.n_layers, policy, context=config.model.context
        ),
        null_attention=null,
        fidelity=evaluate_fidelity(model, tokens, policy, config),
        weights={"format": run.model.weight_format, "bytes": run.model.weight_bytes},
    )


def text_of(run: Run, data: str | None, *, tokenizer: Tokenizer | None = None) -> tuple[Corpus, Tokens]:
    """What a run is evaluated on, as its model reads it: the held-out part of its corpus, or all of the
    corpus at `data`. tokenizer: the run's with other special tokens.

    Raises DataError for a corpus that cannot be read, or holds tokens that the model does not have,
    RecordMismatchError for a corpus of the run's own that is another one by now.
    """
    config, tokenizer = run.config, tokenizer or run.tokenizer
    if data is None:
        corpus = load_corpus(config.data, context=config.model.context, tokenizer=tokenizer)
        run.check_corpus(corpus)
        part = corpus.held_out
    else:
        corpus = load_corpus(attrs.evolve(config.data, source=data), context=1, tokenizer=tokenizer)
        part = corpus.tokens
    tokens = corpus.as_read(part)
    check_fit(tokens, tokenizer=tokenizer, vocab_size=run.model.tok_emb.num_embeddings)
    return corpus, tokens


@contextlib.contextmanager
def _attention(run: Run, *, long_seq: bool) -> Iterator[dict[str, Any] | None]:
    """Within: exact attention, or the long-sequence path with the run's numbers and its own summarizer."""
    if not long_seq:
        yield None
        return
    model, context = run.model, run.config.model.context
    with model.long_sequence(run.config.model.train_long_seq) as used:
        numbers = numbers_of(used)
        exact = plan_of(used.config, context).exact
        text = f"long-sequence path: {numbers.text}"
        if exact:
            text += f"; exact attention, since its window covers the {context} tokens of the context"
        elif model.attentions[0].summarizer is None:
            text += "; trained with exact attention"
        yield {"text": text, "exact": exact, "numbers": numbers}
