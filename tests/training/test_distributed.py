"""Two processes train as one: same losses for the same global batch, one writer, and nobody hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_worker import CONFIG
from tiny_run import Trained, events_of, run, without_dropout

from dba_core.errors import ConfigError
from dba_core.training import distributed
from dba_core.training.distributed import World
from dba_core.training.loop import CheckpointSaved, StepFinished
from dba_core.training.metrics_log import read_metrics

pytestmark = pytest.mark.torch


WORKER = Path(__file__).with_name("distributed_worker.py")
CASES = ("train", "straight", "stop", "resume", "partial", "collectives")


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_", "LOCAL_"))
    }
    path = os.pathsep.join([str(Path(distributed.__file__).parents[2]), kept.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases under torchrun with two processes."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(WORKER), str(folder), *CASES],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(tmp_path_factory.mktemp("one"), without_dropout(CONFIG))


def told(folder: Path, case: str, rank: int) -> dict:
    return json.loads((folder / f"{case}-{rank}.json").read_text(encoding="utf-8"))


def test_two_processes_have_the_losses_of_one(folder: Path, alone: Trained) -> None:
    expected = [event.loss for event in events_of(alone, StepFinished)]
    found = told(folder, "train", 0)
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    assert found["best_loss"] == pytest.approx(alone.result.progress.best_loss, rel=1e-5)
    weights = [p.detach().double().abs().sum().item() for p in alone.model.parameters()]
    assert found["weights"] == pytest.approx(weights, rel=1e-4, abs=1e-5)


def test_both_processes_end_with_the_same_weights(folder: Path) -> None:
    for case in ("train", "straight", "resume"):
        main, other = told(folder, case, 0), told(folder, case, 1)
        assert main["weights"] == other["weights"]
        assert main["best_loss"] == other["best_loss"]


def test_only_the_main_process_tells_and_writes(folder: Path, alone: Trained) -> None:
    assert told(folder, "train", 1)["losses"] == []
    rows = read_metrics(folder / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    saved = [event.path.name.split("-")[1] for event in events_of(alone, CheckpointSaved)]
    assert saved[-1] in {path.name.split("-")[1] for path in (folder / "train" / "checkpoint").glob("step-*")}


def test_a_signal_to_one_process_stops_both_at_the_same_step(folder: Path) -> None:
    main, other = told(folder, "stop", 0), told(folder, "stop", 1)
    assert (main["interrupted"], other["interrupted"]) == (True, True)
    assert main["last_step"] == other["last_step"] == 5


def test_two_processes_resume_to_the_same_bits(folder: Path) -> None:
    straight, stop, resume = (told(folder, case, 0) for case in ("straight", "stop", "resume"))
    assert stop["losses"] + resume["losses"] == straight["losses"]
    assert resume["weights"] == straight["weights"]
    assert resume["best_loss"] == straight["best_loss"]


def test_processes_draw_different_dropout(folder: Path, alone: Trained) -> None:
    """With dropout the losses differ from those without from the first step on."""
    expected = [event.loss for event in events_of(alone, StepFinished)]
    assert told(folder, "straight", 0)["losses"][0] != pytest.approx(expected[0], rel=1e-6)


def test_a_parameter_without_a_gradient_on_one_process_or_on_all(folder: Path) -> None:
    for rank in (0, 1):
        found = told(folder, "partial", rank)
        assert found["some"] == [0.5] * 9
        assert found["never"] is True
        assert found["never_after"] == [1.0] * 9  # not even decayed, as in a single process


def test_collectives(folder: Path) -> None:
    for rank in (0, 1):
        found = told(folder, "collectives", rank)
        assert found["means"] == [[0.5, 0.5], [1.5, 1.5], [2.5, 2.5], [1.0, 1.0]]
        assert found["sum"] == [2.0, 1.0]
        assert found["told"] == 5
        assert found["gathered"] == [[0], [1]]


def test_a_process_that_fails_ends_the_other_too(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), "fail"],
            env=environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "the second process has had enough" in errors[1]
    assert "another process of this run failed or stopped answering" in errors[0]
    assert time.monotonic() - started < 60


def test_a_world_of_one_needs_no_group() -> None:
    with World.from_environment("cpu", environ={}) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        tensor = torch.tensor([2.0])
        world.barrier()
        world.broadcast([tensor])
        world.all_reduce_mean([tensor])
        assert world.sum(tensor).item() == 2.0
        assert [part.tolist() for part in world.gather(tensor)] == [[2.0]]
    assert World.from_environment("cpu", environ={"RANK": "0", "WORLD_SIZE": "1"}).size == 1


def test_devices_can_be_compared() -> None:
    assert World(0, 1, "cuda").device == torch.device("cuda", 0)
    assert World(0, 1, "cuda:1").device == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "environ", "says"),
    [
        ("cpu", {"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        ("cpu", {"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is not a number"),
        ("cpu", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ("cuda:0", {"RANK": "0", "WORLD_SIZE": "2"}, "'cuda:0' names one device for several processes"),
    ],
)
def test_a_broken_environment_is_named(device: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        World.from_environment(device, environ=environ)
    assert says in str(caught.value)


@pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="needs fewer than 8 GPUs")
def test_too_few_gpus_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"process 7 .* no GPU of its own, there are \d.*--nproc-per-node"):
        World.from_environment("cuda", environ={"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "7"})
