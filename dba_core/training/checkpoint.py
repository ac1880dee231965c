"""The checkpoint of a training run: weights, optimizer, generators, data position and progress.

    model.safetensors      parameters by name
    optimizer.safetensors  AdamW's state, `name.exp_avg`, `name.exp_avg_sq`, `name.step`
    random.safetensors     torch's generators of every process, `cpu.0`, `cuda.0`, ...
    state.json             step, losses, data position, fingerprint

The learning rate is a pure function of the step, so the schedule has no state. Called by training.loop;
evaluation and generation read the weights.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from dba_core.errors import CheckpointError
from dba_core.model.finite import check_finite
from dba_core.training.checkpoint_files import StoredCheckpoint, read_checkpoint, write_checkpoint
from dba_core.training.distributed import World
from dba_core.training.fingerprint import fingerprint_hash
from dba_core.training.metrics_log import is_count

#: What AdamW keeps of a parameter.
_MOMENTS = {"exp_avg", "exp_avg_sq"}


@attrs.define(kw_only=True)
class Progress:
    """How far a run is. eval_loss: of the newest evaluation; best_loss: the lowest one, and its step."""

    step: int = 0
    eval_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, stored: StoredCheckpoint) -> Progress:
        """What a checkpoint says. Raises CheckpointError for a value that is missing or none."""
        state = stored.state
        for name in ("eval_loss", "best_loss"):
            loss = state.get(name, "")
            if loss is not None and (isinstance(loss, bool) or not isinstance(loss, (int, float))):
                raise _no_position(stored, name, loss)
        best = state.get("best_step", "")
        if best is not None and not is_count(best):
            raise _no_position(stored, "best_step", best)
        return cls(**{field.name: state[field.name] for field in attrs.fields(cls)})


def _no_position(stored: StoredCheckpoint, name: str, value: object) -> CheckpointError:
    given = f"gives {name!r} as {ascii(value)[:60]}" if name in stored.state else f"has no {name!r}"
    return CheckpointError(
        f"{stored.path} {given}, so training cannot go on from it; restore it from a copy, or train again"
    )


def save_checkpoint(
    root: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    random_states: Mapping[str, Tensor],
    sampler: Mapping[str, Any],
    progress: Progress,
    fingerprint: Mapping[str, Any],
    pointers: tuple[str, ...],
) -> Path:
    """Write everything and let `pointers` ("best", "last") name it. Called on the main process only."""
    return write_checkpoint(
        root,
        step=progress.step,
        tensors={
            "model": model.state_dict(),
            "optimizer": _optimizer_tensors(model, optimizer),
            "random": random_states,
        },
        state={
            **attrs.asdict(progress),
            "sampler": dict(sampler),
            "fingerprint": dict(fingerprint),
            "fingerprint_sha256": fingerprint_hash(fingerprint),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        },
        pointers=pointers,
    )


def load_model_weights(model: nn.Module, root: Path, which: str = "best") -> StoredCheckpoint:
    """Put the weights that `best` or `last` names into the model, on whatever device it is.

    Raises CheckpointError for a checkpoint that is missing or damaged, or that is of another model; the model
    is then unchanged.
    """
    stored = read_checkpoint(root, which)
    restore_weights(model, stored)
    return stored


def restore_weights(model: nn.Module, stored: StoredCheckpoint) -> None:
    """The same from a checkpoint that has been read. Raises CheckpointError for a NaN or an infinity too."""
    saved, mine = stored.tensors("model"), model.state_dict()
    problems = [f"{name} is missing" for name in mine if name not in saved]
    problems += [f"{name} is unknown to the model" for name in saved if name not in mine]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, the model's is {tuple(mine[name].shape)}"
        for name in mine
        if name in saved and saved[name].shape != mine[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(
            f"{stored.path} is the checkpoint of another model: {shown}. Build the model from the "
            "configuration that the run recorded"
        )
    for name, tensor in saved.items():
        check_finite(tensor, name=name, where=str(stored.path / "model.safetensors"))
    model.load_state_dict(saved)


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, stored: StoredCheckpoint) -> None:
    """Put the saved moments and step counts back. A parameter that had none gets none.

    Raises CheckpointError for moments of another model, or with a NaN or an infinity.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.tensors("optimizer").items():
        name, _, part = key.rpartition(".")
        by_name.setdefault(name, {})[part] = tensor
    _check_moments(model, by_name, where=stored.path / "optimizer.safetensors")
    order = _names_in_order(model, optimizer)
    state = {index: by_name[name] for index, name in enumerate(order) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def collect_random_states(world: World) -> dict[str, Tensor]:
    """The state of torch's generators in every process. Called by all processes together."""
    states = {f"cpu.{rank}": state for rank, state in enumerate(world.gather(torch.get_rng_state()))}
    if world.device.type == "cuda":
        cuda = world.gather(torch.cuda.get_rng_state(world.device))
        states |= {f"cuda.{rank}": state for rank, state in enumerate(cuda)}
    return states


def restore_random_states(world: World, stored: StoredCheckpoint) -> None:
    """Let this process's generators go on where they were. Raises CheckpointError where they are missing."""
    states = stored.tensors("random")
    names = [f"cpu.{world.rank}", *([f"cuda.{world.rank}"] if world.device.type == "cuda" else [])]
    try:
        torch.set_rng_state(states[names[0]])
        if len(names) > 1:
            torch.cuda.set_rng_state(states[names[1]], world.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{stored.path / 'random.safetensors'} does not hold the generators {', '.join(names)} of this "
            f"version of torch ({error}); resume with the version that wrote it, or train again"
        ) from None


def _check_moments(model: nn.Module, by_name: Mapping[str, Mapping[str, Tensor]], *, where: Path) -> None:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, parts in by_name.items():
        sound = name in shapes and parts.keys() == _MOMENTS | {"step"} and parts["step"].numel() == 1
        if not sound or any(parts[moment].shape != shapes[name] for moment in _MOMENTS):
            raise CheckpointError(
                f"{where} holds {ascii(name)[:80]} with {', '.join(sorted(map(ascii, parts)))[:80]}, which "
                "is no AdamW state of this model; restore the checkpoint from a copy, or train again"
            )
        for part, tensor in parts.items():
            check_finite(tensor, name=f"{name}.{part}", where=str(where))


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _names_in_order(model, optimizer)
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}.{part}": tensor for index, parts in state.items() for part, tensor in parts.items()
    }


def _names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
