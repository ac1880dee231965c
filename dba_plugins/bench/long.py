"""Long training sequences beside exact attention.

Forward and backward of one attention layer: the long-sequence path with the summarizer `mean` against exact
causal attention in the fastest form that a user could call (one scaled_dot_product_attention on contiguous
queries, keys and values). Random tensors, 8 heads, one sequence, candidates in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import attrs

from dba_core.command import Command, command_line, option, summary_of
from dba_core.contracts import AttentionShape, Summarizer, SummarizerRequest
from dba_core.hookspecs import hookimpl
from dba_core.registry import Registry
from dba_core.report import Report, Reporter
from dba_plugins.bench.measured import repeats

if TYPE_CHECKING:
    from torch import Tensor

    from dba_plugins.bench.one_layer import Row

#: The numbers of the long-sequence path that are measured: the defaults on a CPU.
MEM_BLOCK, LOCAL_WINDOW, Q_CHUNK = 64, 512, 128


@attrs.frozen(kw_only=True)
class LongBench:
    """How many tokens, in which chunks."""

    tokens: tuple[int, ...] = option((2048, 4096, 8192), help="Tokens of the sequence.", least=1)
    q_chunk: int = option(Q_CHUNK, help="Query tokens of a chunk.", least=1)
    repeats: int = repeats(20)


def run(request: LongBench, reporter: Reporter) -> Report:
    """Time of one layer's forward and backward pass over long sequences.

    \b
    Examples:
      dba bench long
      dba bench long --tokens 4096 --q-chunk 256
    """
    from dba_plugins.bench.one_layer import layer_report

    found = {}
    for tokens in request.tokens:
        reporter.note(f"{tokens:,} tokens ...")
        found[tokens] = measure_long(tokens=tokens, repeats=request.repeats, q_chunk=request.q_chunk)
    return layer_report(
        "long",
        "Long training sequences, forward and backward of one layer",
        found,
        command=command_line("bench.long", request),
    )


def measure_long(
    *, tokens: int, repeats: int = 20, q_chunk: int = Q_CHUNK, widths: tuple[int, int, int] = (16, 48, 64)
) -> list[Row]:
    """Forward and backward over `tokens`; exact attention is the reference. widths: Ds, Dg, Dv."""
    import torch
    import torch.nn.functional as F

    from dba_core.attention.long_sequence.attention import long_sequence_attention
    from dba_core.attention.long_sequence.plan import LongSequencePlan
    from dba_core.attention.projections import Heads
    from dba_plugins.bench.one_layer import N_HEADS, against_first, random_heads
    from dba_plugins.bench.timing import interleaved

    heads = random_heads(tokens, widths, seed=0)
    parts = [t.requires_grad_() for t in (heads.q_sem, heads.q_geo, heads.k_sem, heads.k_geo, heads.v)]
    packed = [
        torch.cat(pair, dim=-1).detach().requires_grad_()
        for pair in ((heads.q_sem, heads.q_geo), (heads.k_sem, heads.k_geo))
    ]
    packed.append(heads.v.detach().clone().requires_grad_())
    upstream = torch.randn(1, N_HEADS, tokens, widths[2])
    shape = AttentionShape(
        d_model=sum(widths),
        n_heads=N_HEADS,
        n_kv_heads=N_HEADS,
        sem_head_dim=widths[0],
        geo_head_dim=widths[1],
        v_head_dim=widths[2],
    )
    request = SummarizerRequest(shape=shape, mem_block=MEM_BLOCK)
    mean = cast("Summarizer", Registry.default().select("summarizer", "mean", request).build())

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

    plan = LongSequencePlan(length=tokens, mem_block=MEM_BLOCK, local_window=LOCAL_WINDOW, q_chunk=q_chunk)

    def long(*tensors: Tensor) -> Tensor:
        return long_sequence_attention(Heads(*tensors), plan=plan, summarizer=mean, null=None)

    calls = {
        "exact": _training_call(exact, packed, upstream),
        f"memory tokens, chunks of {q_chunk}": _training_call(long, parts, upstream),
    }
    return against_first(interleaved(calls, repeats=repeats, device=torch.device("cpu")))


def _training_call(
    attention: Callable[..., Tensor], tensors: Sequence[Tensor], upstream: Tensor
) -> Callable[[int], None]:
    def call(_round: int) -> None:
        for tensor in tensors:
            tensor.grad = None
        attention(*tensors).backward(upstream)  # type: ignore[no-untyped-call]

    return call


@hookimpl
def dba_command() -> Command[LongBench]:
    return Command(
        name="bench.long",
        contract=1,
        summary=summary_of(__doc__),
        request_class=LongBench,
        run=run,
        draws=True,
    )
