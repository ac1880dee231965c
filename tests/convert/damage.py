"""Damaged model files, by seed: bits flipped, ends cut off, headers that say something else.

    PYTHONPATH=. python tests/convert/damage.py 4000

reads that many, and prints what ended in anything but a model or a DBAError.
"""

from __future__ import annotations

import collections
import json
import random
import resource
import struct
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # as a program; pytest has it there

import origin_oracle
from gguf_files import write_gguf
from llama_oracle import CONFIG, random_weights, write_folder

from dba_core.errors import DBAError
from dba_core.model.pretrained import open_pretrained

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 7, 2**31, 2**40, 2**62, 2**64, 10**4000, 0.0, -1.5, 1e308, 1e-320),
    *("", "x", "24", "\x1b[31m", "é", [], [1], [[1]], {}, {"a": {"b": 1}}, {"rope_type": "yarn"}),
    {"type": "linear", "factor": 1e300},
    {"rope_type": "yarn", "factor": 1e-300, "original_max_position_embeddings": 2**48},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 1.0000001},
)
MORE_FIELDS = (
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "layer_types",
    "partial_rotary_factor",
    "mlp_bias",
)


def sources(folder: Path) -> dict[str, tuple[Path, Path]]:
    """What open_pretrained is given, and the file to damage, by kind."""
    whole = write_folder(folder / "hf", CONFIG, random_weights(CONFIG))
    weights = random_weights(CONFIG)
    shards = write_folder(folder / "shards", CONFIG, weights)
    (shards / "model.safetensors").rename(shards / "a.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "a.safetensors")}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {**CONFIG, "hidden_size": 32, "intermediate_size": 64}

    def more(writer: Any) -> None:
        writer.add_rope_scaling_factor(2.0)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"t{number}" for number in range(256)])
        writer.add_token_types([1] * 255 + [3])
        writer.add_token_merges(["t 0", "t 1"])

    gguf = write_gguf(folder / "m.gguf", config, random_weights(config), more=more)
    state = origin_oracle.random_state(origin_oracle.CONFIG)
    old = origin_oracle.write(folder / "old.pt", origin_oracle.CONFIG, state)
    return {
        "config.json": (whole, whole / "config.json"),
        "safetensors": (whole, whole / "model.safetensors"),
        "index": (shards, shards / "model.safetensors.index.json"),
        "gguf": (gguf, gguf),
        "pt": (old, old),
    }


def damaged(kind: str, content: bytes, rng: random.Random) -> bytes:
    """Another content: the header's fields where that is JSON, else its bytes."""
    way = rng.random()
    if kind in ("config.json", "index") and way < 0.7:
        return _json(content, rng)
    if kind == "safetensors" and way < 0.4:
        size = struct.unpack("<Q", content[:8])[0]
        head = _json(content[8 : 8 + size], rng)
        return struct.pack("<Q", len(head)) + head + content[8 + size :]
    if way > 0.85:
        return content[: rng.randrange(len(content))]
    data = bytearray(content)
    header = len(content) if kind == "pt" else min(len(content), 6000)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(header)
        if kind == "pt" and rng.random() < 0.6:  # the pickle and the directory of the archive
            at = rng.choice((rng.randrange(3000), len(content) - 1 - rng.randrange(4000)))
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        else:
            value = rng.choice(
                (b"\xff" * 8, b"\0" * 8, struct.pack("<Q", rng.choice((1, 2**31, 2**40, 2**62))))
            )
            data[at : at + 8] = value[: max(0, len(data) - at)]
    return bytes(data)


def _json(content: bytes, rng: random.Random) -> bytes:
    table = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        here = table
        names = [*here, *(MORE_FIELDS if "hidden_size" in here else ())]
        name = rng.choice(names or ["weight_map"])
        while isinstance(here.get(name), dict) and here[name] and rng.random() < 0.8:
            here = here[name]
            name = rng.choice(list(here))
        if rng.random() < 0.15:
            here.pop(name, None)
        elif isinstance(here.get(name), list) and here[name] and rng.random() < 0.6:
            here[name] = [*here[name][:-1], rng.choice(ODD)]
        else:
            here[name] = rng.choice(ODD)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(table).encode()
    finally:
        sys.set_int_max_str_digits(limit)


def cases(count: int, *, seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """(kind, what open_pretrained is given), `count` times in turn; the file is whole again afterwards."""
    files = sources(folder)
    for number in range(count):
        kind = list(files)[number % len(files)]
        given, file = files[kind]
        content = file.read_bytes()
        file.write_bytes(damaged(kind, content, random.Random(seed * 1_000_003 + number)))
        yield kind, given
        file.write_bytes(content)


def ends(given: Path) -> str:
    """`loaded` or the name of the DBAError; any other exception is let through."""
    try:
        open_pretrained(given).build()
    except DBAError as error:
        return type(error).__name__ if len(str(error)) < 4000 else "an endless message"
    return "loaded"


def main(count: int, seed: int) -> None:
    """Counts how they end; the first other exception stops it."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    ended: collections.Counter[str] = collections.Counter()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as scratch:
        for number, (kind, given) in enumerate(cases(count, seed=seed, folder=Path(scratch))):
            print(number, kind, file=sys.stderr)
            ended[f"{kind}: {ends(given)}"] += 1
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) >> 10
            if grown > 20:
                most += grown << 10
                print(f"{number} {kind}: {grown} MiB more")
    print(*sorted(ended.items()), f"{count} files, and no other exception", sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
