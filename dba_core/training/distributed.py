"""Data parallelism on torch.distributed: every process holds the whole model and a slice of the global batch.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; `World.from_environment` reads them and joins the group
(gloo on the CPU, NCCL on CUDA). Without them the world is this process alone and every collective does
nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from dba_core.errors import ConfigError, TrainingError

#: Gradients are summed in flat pieces of about this many bytes.
BUCKET_BYTES = 25 * 2**20


def _indexed(device: str | torch.device) -> torch.device:
    """`cuda` alone means the first GPU, so that devices can be compared."""
    plain = torch.device(device)
    return torch.device("cuda", 0) if plain == torch.device("cuda") else plain


@attrs.frozen
class World(contextlib.AbstractContextManager["World"]):
    """This process's place among those that train together, and the device that it trains on."""

    rank: int = 0
    size: int = 1
    device: torch.device = attrs.field(default=torch.device("cpu"), converter=_indexed)

    @classmethod
    def from_environment(
        cls, device: str = "cpu", *, environ: Mapping[str, str] = os.environ, timeout_seconds: float = 600.0
    ) -> World:
        """Join the group that torchrun describes; alone where it describes none or one of one process.

        device: `cpu`, `cuda` (then the process takes the GPU of its local rank) or `cuda:N` (alone only).
        timeout_seconds: how long a collective waits for the others. Raises ConfigError for a broken
        environment or too few GPUs.
        """
        rank, size = _number(environ, "RANK", 0), _number(environ, "WORLD_SIZE", 1)
        if size <= 1:
            return cls(0, 1, device)
        if rank >= size:
            raise ConfigError(f"environment: RANK={rank} is not below WORLD_SIZE={size}; torchrun sets both")
        local = _local_device(device, _number(environ, "LOCAL_RANK", rank))
        if local.type == "cuda":
            torch.cuda.set_device(local)
        dist.init_process_group(
            "nccl" if local.type == "cuda" else "gloo",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        return cls(rank, size, local)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum(torch.zeros(1, device=self.device))

    def sum(self, values: Tensor) -> Tensor:
        """`values`, on this world's device, summed over the processes in place."""
        if self.size > 1:
            with _naming_the_others():
                dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors, on this world's device, with the main process's."""
        if self.size > 1:
            with _naming_the_others():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process (equal shapes and types), by rank, on the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        local = tensor.to(self.device)
        parts = [torch.empty_like(local) for _ in range(self.size)]
        with _naming_the_others():
            dist.all_gather(parts, local)
        return [part.cpu() for part in parts]

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, which all give the same shapes in one order."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = self.sum(torch.cat([tensor.reshape(-1) for tensor in bucket])).div_(self.size)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def __exit__(self, *raised: object) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"environment variable {name}={text!r} is not a number; torchrun sets it, or unset it"
        )
    return int(text)


def _local_device(device: str, local_rank: int) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise ConfigError(
            f"{device!r} names one device for several processes; use 'cuda' or 'cpu'", path="device"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; lower torchrun --nproc-per-node or use device='cpu'",
            path="device",
        )
    return torch.device("cuda", local_rank)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, cut where the type changes or BUCKET_BYTES are full."""
    bucket: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or filled + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.nbytes
    if bucket:
        yield bucket


@contextlib.contextmanager
def _naming_the_others() -> Iterator[None]:
    """torch reports a lost or silent peer as a RuntimeError about sockets; say what it means."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another process of this run failed or stopped answering; its own message says why. Resume from "
            f"the last checkpoint when that is repaired. ({error})"
        ) from error
