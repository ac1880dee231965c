"""The text sample that a run leaves: it continues the configured prompt, or the held-out text's beginning."""

from __future__ import annotations

from dba_core.generation.loop import generate
from dba_core.runs.prepare import Prepared
from dba_core.runs.summary import SampleFacts

#: Tokens of the held-out text that stand in for a prompt.
_PROMPT_TOKENS = 64


def sample_run(prepared: Prepared) -> SampleFacts:
    """Sample under the run's KV policy with its generation settings."""
    config, tokenizer = prepared.config, prepared.corpus.tokenizer
    generation = config.generation
    seed = generation.seed if generation.seed is not None else config.seed
    if generation.prompt is not None:
        prompt = tokenizer.encode(generation.prompt).tolist()
    else:
        prompt = prepared.corpus.held_out[: min(_PROMPT_TOKENS, config.model.context)].tolist()
    (new,) = generate(
        prepared.model, [prompt], generation, kv_policy=config.kv_policy, tokenizer=tokenizer, seed=seed
    )
    before = tokenizer.decode(prompt)
    return SampleFacts(
        prompt=before,
        text=tokenizer.decode([*prompt, *new])[len(before) :],
        temperature=generation.temperature,
        seed=seed,
    )


def samples_text(sample: SampleFacts, *, policy: str) -> str:
    """`samples.txt`."""
    head = f"temperature {sample.temperature:g}, seed {sample.seed}, KV policy {policy}"
    return f"{head}\n\n--- prompt\n{sample.prompt}\n--- continuation\n{sample.text}\n"
