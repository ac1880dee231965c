"""A whole model beside transformers and llama.cpp.

What a user could run the same weights with, in one process, in turns:

    prefill   prompts go into an empty cache, and one token of each comes out
    decode    greedy tokens after a filled cache, which is then as before

Ours are the source as it is and what it was converted to, each under its KV policies. Beside them stand
transformers (eager and fused attention, static and growing cache, bfloat16) and llama.cpp on the same GGUF
file, where they are installed. A run alone stands beside a Llama of its sizes, itself without a cache, and a
plain GPT. Everyone's held-out loss is taken with the weights and the cache that were timed.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dba_core.command import Command, command_line, summary_of
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_core.runs.choosing import check_plugins
from dba_plugins.bench.measured import measured
from dba_plugins.bench.model.request import ModelBench

if TYPE_CHECKING:
    from dba_plugins.bench.model.contestants import Contestant
    from dba_plugins.bench.model.entrants import Entrants

COLUMNS = (
    Column("phase", "phase"),
    Column("threads", "threads"),
    Column("batch", "batch"),
    Column("length", "context", "{:,}"),
    Column("name", "what"),
    Column("against_fastest", "against fastest other", "{:.2f}x"),
    Column("tokens_per_second", "tokens/s", "{:.1f}"),
    Column("ms", "ms", "{:.1f}"),
    Column("loss", "loss", "{:.4f}"),
    Column("weight_megabytes", "weights MB", "{:.0f}"),
    Column("cache_megabytes", "KV MB", "{:.1f}"),
    Column("resident_megabytes", "resident MB", "{:.0f}"),
)
_LOSS_WINDOW = 512


def run(request: ModelBench, reporter: Reporter) -> Report:
    """Tokens per second, memory and loss of SOURCE's model, of RUN's, and of what else runs that model.

    SOURCE is a .gguf file or the folder of a Hugging Face model, and RUN what `dba convert` made of it; or
    SOURCE is a run. transformers comes with the extra 'bench', llama.cpp with the package llama-cpp-python;
    who is not installed is left out, and the report says so.

    \b
    Examples:
      dba bench model model.gguf runs/smol
      dba bench model model.gguf runs/smol --contexts 512 --batch 1,4,16 --threads 2
      dba bench model model.gguf runs/smol --weights fp32,int8,int4
      dba bench model ./SmolLM2-135M --data book.txt --against transformers
      dba bench model latest --contexts 64,256
    """
    check_plugins("weight_format", request.weights)
    import torch

    from dba_plugins.bench.libraries import torch_build
    from dba_plugins.bench.model.entrants import entrants
    from dba_plugins.bench.model.measure import DECODE, PREFILL, Case, measure

    found = entrants(request, reporter)
    contestants = {}
    for name, make in found.make.items():
        reporter.note(f"{name}: its weights ...")
        contestants[name] = make()
    window = min(_LOSS_WINDOW, found.context)
    losses = _losses(request, found, contestants, reporter, window=window)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    before = torch.get_num_threads()
    try:
        for threads in request.threads or (before,):
            torch.set_num_threads(threads)
            for phase, batch, length in product((PREFILL, DECODE), request.batch, request.contexts):
                reporter.note(f"{threads} threads, {phase} of {batch} x {length:,} tokens ...")
                case = Case(phase=phase, threads=threads, batch=batch, length=length)
                more, left = measure(request, case, contestants, vocab_size=found.vocab_size)
                rows += more
                notes += [note for note in left if note not in notes]
    finally:
        torch.set_num_threads(before)
    return measured(
        name="model",
        title=f"{found.title} beside what else runs it",
        command=command_line("bench.model", request),
        columns=COLUMNS,
        rows=[_row(row, losses.get(row["name"])) for row in rows],
        notes=(*_notes(request, window), *found.notes, *notes, torch_build()),
        draw=_draw,
    )


def _losses(
    request: ModelBench,
    found: Entrants,
    contestants: dict[str, Contestant],
    reporter: Reporter,
    *,
    window: int,
) -> dict[str, float | None]:
    tokens = found.text() if request.loss_tokens else None
    if tokens is None:
        return {}
    losses = {}
    for name, contestant in contestants.items():
        reporter.note(f"{name}: its loss ...")
        losses[name] = contestant.loss(tokens, context=window, limit=request.loss_tokens)
    return losses


def _row(row: dict[str, Any], loss: float | None) -> dict[str, Any]:
    """With its loss, and what memory it takes in the unit of the table."""
    sizes = {key: row.get(f"{key}_bytes") for key in ("weight", "cache", "resident")}
    shown = {f"{key}_megabytes": None if size is None else size / 1e6 for key, size in sizes.items()}
    return {**row, **shown, "loss": loss}


def _notes(request: ModelBench, window: int) -> tuple[str, ...]:
    told = [
        "against fastest other: how many times as fast as the fastest row that is not dba's, same phase, "
        "threads, batch and context",
        f"medians of {request.repeats} rounds of {request.new_tokens} greedy tokens, of "
        f"{request.prefill_repeats} of a prefill; when decoding begins our caches and those of transformers "
        "hold random keys and values, llama.cpp's a prompt's",
        "weights: in memory, tied ones once; KV: keys and values of the context",
    ]
    if request.loss_tokens:
        told.append(
            f"loss: nats per token of the same {request.loss_tokens} held-out tokens at most, in windows of "
            f"{window}; ours through a cache of the row's policy"
        )
    if request.resident:
        told.append(
            "resident: all that a process of its own takes after a turn, libraries included (torch, or "
            "llama.cpp without it)"
        )
    return tuple(told)


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.charts import model_chart

    model_chart(path, report)


@hookimpl
def dba_command() -> Command[ModelBench]:
    return Command(
        name="bench.model",
        contract=1,
        summary=summary_of(__doc__),
        request_class=ModelBench,
        run=run,
        draws=True,
    )
