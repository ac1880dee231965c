"""One process of a distributed test: trains the tiny run and writes what it saw. Started by test_distributed.

    python distributed_worker.py FOLDER CASE

CASE: `train`, `resume`, `stop` (this process asks to stop after step 4), `fail` (the second process raises).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
from tiny_run import build, events_of, run, tiny_config, without_dropout
from torch import nn

from dba_core.config.run import RunConfig
from dba_core.errors import TrainingError
from dba_core.training.distributed import World
from dba_core.training.events import StepFinished

TIMEOUT_SECONDS = 60.0


class SometimesUsed(nn.Module):
    """A parameter that takes part in the loss on the first process only, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.some = nn.Parameter(nn.init.ones_(nn.Parameter().new_empty(3)))
        self.never = nn.Parameter(nn.init.ones_(nn.Parameter().new_empty(3)))


def config_of(case: str) -> RunConfig:
    """Dropout where the same processes must agree with themselves, none where their number must not matter."""
    config = tiny_config(steps=8, batch_size=8, eval_every=4, log_every=1)
    return without_dropout(config) if case == "train" else config


def main(folder: Path, case: str) -> None:
    with World.from_environment("cpu", timeout_seconds=TIMEOUT_SECONDS) as world:
        config = config_of(case)

        def listen(event: object) -> None:
            if case == "stop" and isinstance(event, StepFinished) and event.step == 4:
                raise KeyboardInterrupt

        model = build(attrs.evolve(config, seed=config.seed + world.rank))
        if case == "fail" and world.rank == 1:
            raise TrainingError("the second process has had enough")
        trained = run(folder, config, world=world, model=model, resume=case == "resume", on_event=listen)
        told = {
            "losses": [event.loss for event in events_of(trained, StepFinished)],
            "weights": sum(float(p.detach().double().abs().sum()) for p in trained.model.parameters()),
            "best": trained.result.best_loss,
            "last_step": trained.result.last_step,
            "interrupted": trained.result.interrupted,
        }
    (folder / f"{case}-{world.rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
