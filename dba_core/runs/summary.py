"""The summary of a run as data: one attrs tree, `summary.json` is its plain form (schema number `schema`).

A loss that was not measured is None. Sizes are bytes, times seconds, losses nats per token. Built by the job,
shown by `summary_text` on the terminal and in `summary.md`.
"""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.report import as_plain
from dba_core.runs.cost import Cost
from dba_core.runs.kv_memory import KvMemory

#: Raised when a field of summary.json changes its meaning or goes away.
SCHEMA = 1


@attrs.frozen(kw_only=True)
class ModelFacts:
    """The model that was trained. `layout` is `model.attention.mode`."""

    layout: str
    cost: Cost
    n_layers: int
    d_model: int
    d_ff: int
    context: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    sem_head_dim: int
    geo_head_dim: int
    v_head_dim: int


@attrs.frozen(kw_only=True)
class PluginFacts:
    """One chosen plugin: where it is from, with what options, why, and what `auto` passed over before it.

    layers: the layers that have it, as in `0-3,6`. not_built: why the model does without it all the same,
    None where it has it.
    """

    name: str
    distribution: str
    version: str
    contract: int
    options: dict[str, Any]
    why: str
    layers: str
    passed_over: tuple[str, ...]
    not_built: str | None = None


@attrs.frozen(kw_only=True)
class LongSequenceFacts:
    """Whether the long-sequence training path can be taken at this context, and its numbers."""

    text: str
    enabled: bool
    active: bool
    threshold: int
    mem_block: int
    local_window: int
    q_chunk: int
    mem_summarizer: str | None
    mass_correction: bool
    exact_every: int


@attrs.frozen(kw_only=True)
class LossFacts:
    """Losses in nats per token.

    train: mean of the logged steps of the last 5% of the run. held_out, perplexity, bits_per_byte: of the
    `checkpoint` weights over `held_out_tokens` tokens, with exact attention. held_out_as_trained: the same
    with the long-sequence path; None where training did not take it.
    """

    train: float | None
    held_out: float
    held_out_as_trained: float | None
    perplexity: float
    bits_per_byte: float | None
    held_out_tokens: int
    checkpoint: str
    checkpoint_step: int


@attrs.frozen(kw_only=True)
class FidelityFacts:
    """The chosen KV policy against an fp32 cache through the real decode path, token by token."""

    delta_nll: float
    ppl_ratio: float
    max_abs_logit: float
    kl: float
    tokens: int


@attrs.frozen(kw_only=True)
class SpeedFacts:
    """Tokens per second (training: all processes; prefill and decode: one sequence) and peak memory."""

    training: float | None
    prefill: float
    decode: float
    prefill_tokens: int
    decode_tokens: int
    peak_memory_bytes: int


@attrs.frozen(kw_only=True)
class TrainingFacts:
    """How far training went."""

    steps: int
    batch_size: int
    tokens: int
    seconds: float
    processes: int


@attrs.frozen(kw_only=True)
class SampleFacts:
    """A sample under the run's KV policy."""

    prompt: str
    text: str
    temperature: float
    seed: int


@attrs.frozen(kw_only=True)
class Environment:
    """Where the run ran."""

    device: str
    device_name: str
    dtype: str
    seed: int
    threads: int
    platform: str
    versions: dict[str, str]


@attrs.frozen(kw_only=True)
class Commands:
    """What to do next, ready to paste."""

    sample: str
    evaluate: str
    repeat: str


@attrs.frozen(kw_only=True)
class Summary:
    """Everything that a run says about itself.

    plugins: by kind, what the layers without a choice of their own have; layer_plugins: the choices of single
    layers, by the layers and the kind.
    """

    name: str
    folder: str
    finished: str
    model: ModelFacts
    data: dict[str, Any]
    plugins: dict[str, PluginFacts]
    layer_plugins: dict[str, dict[str, PluginFacts]]
    kv_policy: str
    kv_memory: KvMemory
    null_attention: str
    long_sequence: LongSequenceFacts
    training: TrainingFacts
    losses: LossFacts
    fidelity: FidelityFacts | None
    speed: SpeedFacts
    sample: SampleFacts
    environment: Environment
    seconds: dict[str, float]
    plots: dict[str, str]
    warnings: tuple[str, ...]
    commands: Commands

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that is not finite is None."""
        return {"schema": SCHEMA, **as_plain(self)}
