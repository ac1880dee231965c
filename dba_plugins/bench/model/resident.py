"""What memory one contestant takes: alone in a process, which has built it and decoded a turn.

Interpreter and libraries are in it, weights in a mapped file as far as they were read. llama.cpp has a
process without torch (`llama_cpp_alone`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import torch

from dba_core.errors import DBAError
from dba_core.report import SilentReporter
from dba_plugins.bench.model.contestants import Contestant
from dba_plugins.bench.model.entrants import entrants
from dba_plugins.bench.model.llama import TransformersLlama
from dba_plugins.bench.model.llama_cpp import LlamaCpp
from dba_plugins.bench.model.llama_cpp_alone import STATUS, resident
from dba_plugins.bench.model.request import ModelBench


def resident_bytes(request: ModelBench, contestant: Contestant, *, batch: int, length: int) -> int | None:
    """Of one that is alone; None where the system does not tell. Raises DBAError where it fails alone."""
    if not STATUS.exists():
        return None
    if isinstance(contestant, LlamaCpp):
        module, asked = contestant.alone(length=length, new_tokens=request.new_tokens)
    else:
        given = {"request": attrs.asdict(request), "name": contestant.name, "size": [batch, length]}
        module, asked = __name__, json.dumps({**given, "threads": torch.get_num_threads()})
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "bytes"
        words = [sys.executable, "-m", module, str(answer)]
        done = subprocess.run(words, input=asked, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise DBAError(
                f"{contestant.name} failed alone in a process: {told}. Leave it out: resident=False"
            )
        return int(answer.read_text(encoding="utf-8"))


def measure_alone(asked: str) -> int:
    """What the process of `resident_bytes` does."""
    given = json.loads(asked)
    request, (batch, length) = ModelBench(**given["request"]), given["size"]
    torch.set_num_threads(given["threads"])
    found = entrants(request, SilentReporter())
    contestant, vocab_size = found.make[given["name"]](), found.vocab_size
    del found  # and what the contestant was made from
    if isinstance(contestant, TransformersLlama):
        _give_back()
    tokens = torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    turn = contestant.decode(tokens.tolist(), new_tokens=request.new_tokens)
    turn.call(0)
    return resident()


def _give_back() -> None:
    """Its weights came by way of ours, which transformers alone would not have held."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(str(measure_alone(sys.stdin.read())), encoding="utf-8")
