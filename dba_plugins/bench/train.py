"""A training step beside a plain PyTorch GPT.

The time of one step of each attention layout beside a plain GPT of the same shape.

All models live in one process and take turns, one step each per round, so that whatever slows the machine
slows all of them. A step is forward, backward, clipping and AdamW on the batch of the configuration; the
library's models take it as the training loop does, the plain one in the usual six lines. The median over
the rounds counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from dba_core.command import Command, command_line, given_flags, group, option, summary_of
from dba_core.config.attention import MODES, AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig, TrainingConfig
from dba_core.errors import UsageError, unknown
from dba_core.hookspecs import hookimpl
from dba_core.report import Column, Report, Reporter
from dba_core.runs.choosing import ConfigChoice
from dba_plugins.bench.measured import measured, repeats

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dba_core.model.language_model import LanguageModel
    from dba_core.training.distributed import World
    from dba_plugins.bench.plain_gpt import PlainGPT
    from dba_plugins.bench.timing import Timing

PLAIN = "plain GPT"
#: Bytes, where the configuration leaves the vocabulary to the tokenizer.
DEFAULT_VOCAB_SIZE = 256

Step = Callable[["Tensor", "Tensor"], None]


@attrs.frozen(kw_only=True)
class StepTime:
    """timing: of one step. ratio: the median by that of the plain GPT, which is the first row."""

    name: str
    parameters: int
    timing: Timing
    ratio: float


def measure_step_times(
    config: RunConfig, *, modes: Sequence[str] = ("standard", "decoupled"), repeats: int = 30
) -> list[StepTime]:
    """Train the plain GPT and the model of `config` with each attention mode on random tokens, interleaved.

    The mode that `config` has keeps its attention settings; the others take the mode's own widths. Weights
    and results are thrown away. `config.training.compile` compiles the library's models only.
    """
    from dba_core.model.language_model import LanguageModel
    from dba_core.training.distributed import World
    from dba_plugins.bench.plain_gpt import PlainGPT
    from dba_plugins.bench.timing import WARMUP_ROUNDS, interleaved

    device = _device(config.device)
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    base = config.model.resolved(vocab_size=vocab_size)
    plain = PlainGPT(base, seed=config.seed).to(device)
    models: dict[str, nn.Module] = {PLAIN: plain}
    steps: dict[str, Step] = {PLAIN: _plain_step(plain, config, device)}
    for mode in modes:
        model = LanguageModel(
            _with_mode(config.model, mode).resolved(vocab_size=vocab_size),
            plugins=config.plugins,
            seed=config.seed,
            device=str(device),
        )
        models[mode], steps[mode] = model, _library_step(model, config, World(0, 1, device))
    batches = _batches(config, vocab_size=vocab_size, rounds=WARMUP_ROUNDS + repeats)
    calls = {name: _on(step, batches) for name, step in steps.items()}
    timings = interleaved(calls, repeats=repeats, device=device)
    reference = timings[PLAIN].median_ms
    return [
        StepTime(
            name=name,
            parameters=sum(parameter.numel() for parameter in models[name].parameters()),
            timing=timing,
            ratio=timing.median_ms / reference,
        )
        for name, timing in timings.items()
    ]


def _batches(config: RunConfig, *, vocab_size: int, rounds: int) -> list[Tensor]:
    """The random tokens of each round: [B, T + 1]."""
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.training.batch_size, config.model.context + 1)
    return [torch.randint(vocab_size, shape, generator=generator) for _ in range(rounds)]


def _on(step: Step, batches: Sequence[Tensor]) -> Callable[[int], None]:
    return lambda round_: step(batches[round_][:, :-1], batches[round_][:, 1:])


def _library_step(model: LanguageModel, config: RunConfig, world: World) -> Step:
    from dba_core.training.step import TrainingStep, build_optimizer

    step = TrainingStep(model, build_optimizer(model, config.training), config, world)

    def run(tokens: Tensor, targets: Tensor) -> None:
        step.gradients(tokens, targets)
        step.apply(lr=config.training.lr)

    return run


def _plain_step(model: PlainGPT, config: RunConfig, device: torch.device) -> Step:
    import torch

    from dba_core.training.step import autocast, build_optimizer

    optimizer = build_optimizer(model, config.training)

    def run(tokens: Tensor, targets: Tensor) -> None:
        with autocast(device, config.dtype):
            loss = model.loss(tokens.to(device), targets.to(device))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _with_mode(model: ModelConfig, mode: str) -> ModelConfig:
    attention = model.attention
    if attention.mode == mode:
        return model
    return attrs.evolve(
        model,
        attention=AttentionConfig(
            mode=mode, n_heads=attention.n_heads, rope_theta=attention.rope_theta, dropout=attention.dropout
        ),
    )


def _device(name: str) -> torch.device:
    import torch

    from dba_core.training.distributed import World

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return World(0, 1, name).device


def default_config(device: str) -> RunConfig:
    """The shape of the preset `shakespeare-cpu`, as bytes."""
    model = ModelConfig(context=64, n_layers=4, d_model=128, attention=AttentionConfig(n_heads=4))
    return RunConfig(device=device, model=model, training=TrainingConfig(batch_size=12, lr=1e-3))


@attrs.frozen(kw_only=True)
class TrainBench:
    """Which configuration, which layouts of it."""

    config: ConfigChoice = group(ConfigChoice)
    mode: tuple[str, ...] = option((), help="Attention layouts.", without="all", offers="mode_list")
    repeats: int = repeats(30)


def run(request: TrainBench, reporter: Reporter) -> Report:
    """Time of a training step. Without a configuration: that of the preset shakespeare-cpu, on bytes.

    \b
    Examples:
      dba bench train
      dba bench train --preset paper-decoupled --mode standard,decoupled --repeats 5
    """
    import torch

    for mode in request.mode:
        if mode not in MODES:
            raise UsageError(unknown("attention layout", mode, MODES))
    choice = request.config
    given = [flag for flag in given_flags(choice) if flag != "--device"]
    config = choice.load().config if given else default_config(choice.device or "cpu")
    rows = measure_step_times(config, modes=request.mode or MODES, repeats=request.repeats)
    return measured(
        name="train",
        title="A training step of each layout beside a plain GPT",
        command=command_line("bench.train", request),
        columns=(
            Column("threads", "threads"),
            Column("name", "model"),
            Column("parameters", "parameters", "{:,}"),
            Column("ms", "ms", "{:.2f}"),
            Column("spread", "quartiles"),
            Column("ratio", "of the plain GPT", "{:.2f}x"),
        ),
        rows=[
            {
                "threads": torch.get_num_threads(),
                "name": row.name,
                "parameters": row.parameters,
                **row.timing.fields,
                "ratio": row.ratio,
            }
            for row in rows
        ],
        device=str(_device(config.device)),
        notes=(
            f"context {config.model.context}, batch {config.training.batch_size}, "
            f"{config.model.n_layers} layers of width {config.model.d_model}",
            f"a step is forward, backward, clipping and AdamW; medians of {request.repeats}, in turn",
        ),
        draw=_draw,
    )


def _draw(path: Path, report: Report) -> None:
    from dba_plugins.bench.charts import bars

    bars(path, report)


@hookimpl
def dba_command() -> Command[TrainBench]:
    return Command(
        name="bench.train",
        contract=1,
        summary=summary_of(__doc__),
        request_class=TrainBench,
        run=run,
        draws=True,
    )
