"""`dba bench`: the group; each measurement is a module of this package, imported when it is called.

A module has one command, decorated with `common.report_options`, which measures and hands its report to
`common.show`.
"""

from __future__ import annotations

import click

from dba_cli.lazy import LazyCommand, LazyGroup

_HERE = "dba_cli.commands.bench"
_COMMANDS = {
    "decode": LazyCommand(f"{_HERE}.decode:decode", "One token over a long cache, beside the alternatives."),
    "kernels": LazyCommand(f"{_HERE}.kernels:kernels", "Machine code of the GPU kernels, without a GPU."),
    "generate": LazyCommand(f"{_HERE}.generate:generate", "Whole models beside transformers."),
    "converted": LazyCommand(f"{_HERE}.converted:converted", "A converted model beside its source."),
    "prefill": LazyCommand(f"{_HERE}.prefill:prefill", "A chunk into a quantized cache, per KV policy."),
    "quality": LazyCommand(f"{_HERE}.quality:quality", "Held-out loss of a run per KV policy."),
    "train": LazyCommand(f"{_HERE}.train:train", "A training step beside a plain PyTorch GPT."),
    "long": LazyCommand(f"{_HERE}.long:long", "Long training sequences beside exact attention."),
    "recall": LazyCommand(f"{_HERE}.recall:recall", "What the long-sequence path learns to recall."),
    "plugins": LazyCommand(f"{_HERE}.plugins:plugins", "What each summarizer, gate and null token costs."),
    "startup": LazyCommand(f"{_HERE}.startup:startup", "Imports, and the first decoded token."),
}


@click.group(cls=LazyGroup, own=_COMMANDS)
def bench() -> None:
    """Measure this machine: each command prints a table that says how it was made.

    All candidates of a measurement run in one process and take turns; a row is the median with its quartiles.

    \b
    Examples:
      dba bench decode --threads 1,2
      dba bench generate --length 1024,8192
      dba bench quality latest --save results --plot
    """
