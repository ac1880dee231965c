"""What `dba bench model` is asked."""

from __future__ import annotations

import attrs

from dba_core.command import argument, option
from dba_core.errors import UsageError
from dba_plugins.bench.measured import repeats, threads

FP16 = "ksem=fp16,kgeo=fp16,v=fp16"
#: Whom a model is measured beside.
TRANSFORMERS, LLAMA_CPP, RECOMPUTING, PLAIN_GPT = "transformers", "llama.cpp", "recomputing", "plain-gpt"


@attrs.frozen(kw_only=True)
class ModelBench:
    """source: a .gguf file, the folder of a Hugging Face model, or a run. run: what the source was converted
    to, where it is no run itself.
    """

    source: str = argument(offers="runs")
    run: str | None = option(None, positional=True, offers="runs")
    checkpoint: str = option("best", help="Which weights of the run.", allowed=("best", "last"))
    allow_drift: bool = option(False, help="Go on where recorded plugins differ from installed.")
    contexts: tuple[int, ...] = option(
        (512, 2048, 8192), help="Tokens of a prompt, and cached tokens when decoding begins.", least=1
    )
    batch: tuple[int, ...] = option((1,), help="Sequences.", least=1)
    new_tokens: int = option(16, help="Tokens of a turn of decoding.", least=1)
    kv_policy: tuple[str, ...] = option(
        (),
        help="Formats of our cache; may be repeated.",
        without="fp16, and what the run was converted or trained for",
        unit="POLICY",
        repeated=True,
        offers="kv_policy",
    )
    weights: tuple[str, ...] = option(
        (),
        help="Hold our weights so in memory; several are measured beside one another.",
        without="as they were trained",
        unit="FORMAT",
    )
    against: tuple[str, ...] = option(
        (),
        help="Beside whom.",
        without="all that are installed and fit",
        allowed=(TRANSFORMERS, LLAMA_CPP, RECOMPUTING, PLAIN_GPT),
    )
    data: str | None = option(
        None,
        help="Text whose loss is measured.",
        without="the held-out text of the run",
        unit="PATH",
        offers="corpora",
    )
    loss_tokens: int = option(4096, help="Tokens of it; 0 for no loss.", least=0)
    most_prefill: int = option(
        8192, help="The longest prefill that is measured, in tokens of all sequences; 0 for none.", least=0
    )
    resident: bool = option(True, help="Measure the resident memory of each, alone in a process.")
    threads: tuple[int, ...] = threads()
    repeats: int = repeats(10)
    prefill_repeats: int = option(3, help="The same for prefill, which takes long.", least=2)

    def __attrs_post_init__(self) -> None:
        for name, values in {"batch": self.batch, "contexts": self.contexts}.items():
            if not values:
                raise UsageError(f"no {name} to measure; give at least one")

    def takes(self, other: str) -> bool:
        return not self.against or other in self.against
