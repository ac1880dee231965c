"""Everything that training changes: the model, its optimizer, the data position, the random state, the
progress.

A checkpoint is this, written down; a resumed run is this, read back. All processes call the same methods in
the same order.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from dba_core.config.run import RunConfig
from dba_core.data.batches import BatchSampler
from dba_core.data.corpus import Corpus
from dba_core.errors import CheckpointError, ConfigError
from dba_core.model.language_model import LanguageModel
from dba_core.model.weights import check_finite, seed_of
from dba_core.serialization.validators import at_least
from dba_core.serialization.values import Serializable, exact_types
from dba_core.training.checkpoint import (
    StoredCheckpoint,
    has_checkpoint,
    read_checkpoint,
    remove_unnamed,
    restore_weights,
    sha256_text,
    write_checkpoint,
)
from dba_core.training.distributed import World
from dba_core.training.fingerprint import differences, fingerprint
from dba_core.training.step import build_optimizer

#: What AdamW keeps of a parameter.
_MOMENTS = {"exp_avg", "exp_avg_sq"}


@attrs.define(kw_only=True, field_transformer=exact_types)
class Progress(Serializable):
    """How far a run is. eval_loss: of the newest evaluation; best_loss: the lowest one, and its step."""

    step: int = attrs.field(validator=at_least(0))
    eval_loss: float | None
    best_loss: float | None
    best_step: int | None = attrs.field(validator=at_least(0))

    @classmethod
    def of(cls, stored: StoredCheckpoint) -> Progress:
        """What a checkpoint says. Raises CheckpointError for a value that is missing or none."""
        names = [field.name for field in attrs.fields(cls)]
        try:
            return cls.from_dict({name: stored.state[name] for name in names if name in stored.state})
        except ConfigError as error:
            raise CheckpointError(
                f"training cannot go on from {stored.path}: {error}. Restore it from a copy, or train again"
            ) from None


class Session:
    """One run's training state, in memory and in `checkpoint_dir`."""

    def __init__(
        self, model: LanguageModel, corpus: Corpus, config: RunConfig, *, checkpoint_dir: Path, world: World
    ) -> None:
        self.model = model
        self.corpus = corpus
        self.config = config
        self.checkpoint_dir = checkpoint_dir
        self.world = world
        self.progress = Progress(step=0, eval_loss=None, best_loss=None, best_step=None)
        self.optimizer = build_optimizer(model, config.training)
        self._fingerprint = fingerprint(model, corpus, config, world)
        self.sampler = BatchSampler(
            corpus.train,
            batch_size=config.training.batch_size,
            context=model.config.context,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
        )

    def start_new(self) -> None:
        """Seed the random state (of dropout) and take the main process's weights."""
        if self.world.is_main and has_checkpoint(self.checkpoint_dir, "last"):
            raise CheckpointError(
                f"{self.checkpoint_dir} already holds a run; resume it or choose another folder"
            )
        if self.world.is_main:
            remove_unnamed(self.checkpoint_dir)
        torch.manual_seed(seed_of(self.config.seed, f"training.{self.world.rank}"))
        self.world.broadcast([parameter.data for parameter in self.model.parameters()])

    def restore(self) -> None:
        """Everything as the checkpoint `last` holds it.

        Raises ConfigError when a setting that changes numbers is another one, CheckpointError when the run is
        finished or the checkpoint is damaged; nothing is changed then.
        """
        stored = read_checkpoint(self.checkpoint_dir, "last")
        changed = list(differences(stored.fingerprint or {}, self._fingerprint))
        if changed:
            raise ConfigError(
                f"the run in {self.checkpoint_dir} cannot go on with other numbers: {'; '.join(changed)}. "
                "Resume with the configuration that it recorded, or start a new run"
            )
        progress = Progress.of(stored)
        if progress.step >= self.config.training.steps:
            raise CheckpointError(
                f"the run in {self.checkpoint_dir} has finished its {self.config.training.steps} steps; "
                "there is nothing to resume. Start a new run to train longer"
            )
        told = torch.tensor([progress.step], device=self.world.device)
        self.world.broadcast([told])
        if told.item() != progress.step:
            raise CheckpointError(
                f"this process found step {progress.step} in {self.checkpoint_dir}, the main process step "
                f"{told.item()}; give all processes one shared folder"
            )
        restore_weights(self.model, stored)
        restore_optimizer(self.model, self.optimizer, stored)
        self.sampler.load_state_dict(stored.state.get("sampler"))
        restore_random_states(self.world, stored)
        self.progress = progress
        if self.world.is_main:
            remove_unnamed(self.checkpoint_dir)

    def save(self, pointers: tuple[str, ...]) -> Path | None:
        """Write a checkpoint that `pointers` ("best", "last") name. Returns its folder on the main process.

        No process goes on before it is written.
        """
        path: Path | None = None
        random_states = collect_random_states(self.world)
        if self.world.is_main:
            path = write_checkpoint(
                self.checkpoint_dir,
                step=self.progress.step,
                tensors={
                    "model": self.model.state_dict(),
                    "optimizer": optimizer_tensors(self.model, self.optimizer),
                    "random": random_states,
                },
                state={
                    **attrs.asdict(self.progress),
                    "sampler": self.sampler.state_dict(),
                    "fingerprint": self._fingerprint,
                    "fingerprint_sha256": sha256_text(json.dumps(self._fingerprint, sort_keys=True)),
                    "versions": {"torch": torch.__version__, "python": platform.python_version()},
                },
                pointers=pointers,
            )
        self.world.barrier()
        return path


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`name.exp_avg` and so on, for every parameter that was updated."""
    return {
        f"{name}.{part}": tensor
        for name, parameter in model.named_parameters()
        for part, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, stored: StoredCheckpoint) -> None:
    """Put the saved moments and step counts back. A parameter that had none gets none.

    Raises CheckpointError for moments of another model, or with a NaN or an infinity.
    """
    where = stored.path / "optimizer.safetensors"
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.tensors("optimizer").items():
        check_finite(tensor, name=key, where=str(where))
        name, _, part = key.rpartition(".")
        saved.setdefault(name, {})[part] = tensor
    parameters = dict(model.named_parameters())
    for name, parts in saved.items():
        sound = name in parameters and parts.keys() == _MOMENTS | {"step"} and parts["step"].numel() == 1
        if not sound or any(parts[moment].shape != parameters[name].shape for moment in _MOMENTS):
            raise CheckpointError(
                f"{where} holds {ascii(name)[:80]} with {', '.join(sorted(map(ascii, parts)))[:80]}, which "
                "is no AdamW state of this model; restore the checkpoint from a copy, or train again"
            )
    names = {parameter: name for name, parameter in parameters.items()}
    numbered = enumerate(p for group in optimizer.param_groups for p in group["params"])
    state = {number: saved[names[p]] for number, p in numbered if names[p] in saved}
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
