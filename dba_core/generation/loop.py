"""Generate text: prefill the prompts into a KV cache, then decode one token per sequence and step.
Called by the command line, a run's sample, and users.

RoPE has no last position, so sequences may grow past the context that the model was trained with; what comes
after it is outside of what the model has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dba_core.config.generation import GenerationConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.data.tokenizers import Tokenizer
from dba_core.errors import CacheError, ConfigError, DataError
from dba_core.generation.culprit import look_for_culprit, unexplained
from dba_core.generation.inference import inference
from dba_core.generation.sampling import LogitsError, RowStreams, sample
from dba_core.generation.stopping import StopWatch

if TYPE_CHECKING:
    from dba_core.cache.kv_cache import KVCache
    from dba_core.model.language_model import LanguageModel

_PREFILL_TOKENS = 512  # longest prefill chunk of one sequence
_PREFILL_ALL = 4096  # most tokens of one chunk of all sequences
_PREFILL_LEAST = 16  # shortest, whatever the number of sequences

OnToken = Callable[[int, int], None]


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    kv_policy: KVCachePolicy | str | None = None,
    cache: KVCache | None = None,
    tokenizer: Tokenizer | None = None,
    seed: int | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt (token lists of any lengths >= 1), without the stop text.

    kv_policy: formats of the cache. cache, instead of it: the prompts continue what it holds, one row each,
    and it then also holds them and the new tokens but the last. tokenizer: needed when `config.stop` names
    texts. seed: used where `config.seed` is None (0 if both are). on_token(row, token) is called in order for
    every token of the result as soon as it is certain that it belongs there. A sequence depends on its own
    prompt and the seed, not on the batch around it, except for the rounding of batched matrix products.
    Raises DataError for an empty prompt or a token out of the vocabulary, ConfigError for stop texts without
    tokenizer and unless either kv_policy or cache is given, CacheError for too small a cache. Logits that are
    not finite are a CheckpointError for a damaged weight, a PluginError for a plugin, a DBAError otherwise.
    """
    if (kv_policy is None) == (cache is None):
        raise ConfigError("generate takes either kv_policy=, for a new cache, or cache=; give one of them")
    lists = _checked_prompts(prompts, model)
    rows = [_Row(row, _stop_watch(config.stop, tokenizer, lists[row]), on_token) for row in range(len(lists))]
    if not lists or config.max_new_tokens == 0:
        return [row.tokens for row in rows]
    chosen = config.seed if config.seed is not None else seed
    streams = RowStreams(0 if chosen is None else chosen, lists)
    with inference(model):
        if kv_policy is not None:
            capacity = max(map(len, lists)) + config.max_new_tokens
            cache = model.new_cache(batch=len(lists), capacity=capacity, policy=kv_policy, rollback=0)
        assert cache is not None
        fed: list[Tensor] = []
        try:
            _decode(model, lists, rows, cache, streams, config, fed)
        except LogitsError as error:
            if kv_policy is None:  # what the cache held before is not known
                raise
            look_for_culprit(model, error, again=lambda: _again(model, lists, fed, kv_policy))
            raise unexplained(model, error) from error
        except CacheError as error:
            if kv_policy is not None:
                look_for_culprit(model, error, again=lambda: _again(model, lists, fed, kv_policy))
            raise
    for row in rows:
        row.finish()
    return [row.tokens for row in rows]


def _decode(
    model: LanguageModel,
    prompts: list[list[int]],
    rows: list[_Row],
    cache: KVCache,
    streams: RowStreams,
    config: GenerationConfig,
    fed: list[Tensor],
) -> None:
    """Prefill, then one token per row and step until every row has stopped. fed: gets the tokens [B] that
    each step puts into the cache.
    """
    logits = prefill(model, prompts, cache)  # [B, V]
    for step in range(config.max_new_tokens):
        tokens = _next_tokens(logits, streams, config)  # [B]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.push(token)
        if step + 1 == config.max_new_tokens or all(row.stopped for row in rows):
            break
        fed.append(tokens)
        logits = model(tokens[:, None], cache=cache)[:, 0]  # [B, V]; stopped rows run along, unread
    cache.check_values()


def _again(
    model: LanguageModel, prompts: list[list[int]], fed: list[Tensor], policy: KVCachePolicy | str
) -> None:
    """The same tokens through a cache of its own."""
    capacity = max(map(len, prompts)) + len(fed)
    cache = model.new_cache(batch=len(prompts), capacity=capacity, policy=policy, rollback=0)
    prefill(model, prompts, cache)
    for tokens in fed:
        model(tokens[:, None], cache=cache)


def prefill(model: LanguageModel, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Put the prompts (each at least one token) into the cache, after what it holds, in chunks -> logits
    [B, V] after each prompt's last token. Shorter prompts are padded on the right; `counts` keeps the padding
    out of the cache. Logits are made of the last tokens alone.
    """
    longest = max(map(len, prompts))
    chunk = max(_PREFILL_LEAST, min(_PREFILL_TOKENS, _PREFILL_ALL // len(prompts)))
    last: dict[int, Tensor] = {}
    for start in range(0, longest, chunk):
        length = min(chunk, longest - start)
        parts = [list(prompt[start : start + length]) for prompt in prompts]
        counts = [len(part) for part in parts]
        padded = [part + [0] * (length - len(part)) for part in parts]
        tokens = torch.tensor(padded, device=model.device)  # [B, T]
        ragged = min(counts) < length
        x = model.hidden(tokens, cache=cache, counts=counts if ragged else None)  # [B, T, d_model]
        for row, prompt in enumerate(prompts):
            if start < len(prompt) <= start + length:
                last[row] = x[row, len(prompt) - 1 - start].clone()  # a view would keep the whole chunk
    return model.logits(torch.stack([last[row] for row in range(len(prompts))]))


class _Row:
    """The result of one sequence as it grows."""

    def __init__(self, row: int, watch: StopWatch | None, on_token: OnToken | None) -> None:
        self.tokens: list[int] = []
        self.stopped = False
        self._row, self._watch, self._on_token = row, watch, on_token

    def push(self, token: int) -> None:
        if self.stopped:
            return
        if self._watch is None:
            self._take([token])
            return
        self._take(self._watch.push(token))
        self.stopped = self._watch.stopped

    def finish(self) -> None:
        if self._watch is not None:
            self._take(self._watch.finish())

    def _take(self, tokens: list[int]) -> None:
        self.tokens += tokens
        if self._on_token is not None:
            for token in tokens:
                self._on_token(self._row, token)


def _next_tokens(logits: Tensor, streams: RowStreams, config: GenerationConfig) -> Tensor:
    uniforms = streams.next().to(logits.device)
    return sample(
        logits.float(), uniforms, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
    )


def _stop_watch(stops: Sequence[str], tokenizer: Tokenizer | None, prompt: Sequence[int]) -> StopWatch | None:
    if not stops:
        return None
    if "" in stops:
        raise ConfigError("an empty stop text is everywhere; leave it out", path="generation.stop")
    if tokenizer is None:
        raise ConfigError(f"stop texts {stops} need the tokenizer; give tokenizer=", path="generation.stop")
    return StopWatch(stops, tokenizer.stream(prompt))


def _checked_prompts(prompts: Sequence[Sequence[int]], model: LanguageModel) -> list[list[int]]:
    """The prompts as lists of plain integers inside the vocabulary, none of them empty."""
    vocab_size = model.config.vocab_size
    assert vocab_size is not None
    lists = [[int(token) for token in prompt] for prompt in prompts]
    for row, prompt in enumerate(lists):
        if not prompt:
            raise DataError(
                f"prompt {row} is empty; give at least one token, a line end say", path="generation.prompt"
            )
        worst = min(prompt) if min(prompt) < 0 else max(prompt)
        if not 0 <= worst < vocab_size:
            raise DataError(
                f"prompt {row} holds token {worst} at position {prompt.index(worst)}; allowed: 0 to "
                f"{vocab_size - 1}, the model's vocabulary",
                path="generation.prompt",
            )
    return lists
