"""Where the time of one decoded token goes in a layer: compiled kernels, matrix products, Python around.

    python docs/gen/step_time.py
    python docs/gen/step_time.py --against ../other-checkout

One layer of `d_model` 64, two heads of 8, 16 and 16, batch 1, q4_0/q8_0/q4_0 in blocks of 32 with a window
of 128 tokens, decoded by `cpu` on one thread: small, so that little but Python is left. `kernels` are those
of the writer and the backend, `products` the layer's, each timed by itself in the same rounds. What is left
is `heads`, the operations between the products (gate, RoPE, scales), and `around`: checks, the cache, the way
to the kernels and back. With another checkout both take turns in processes of their own, and the medians over
the rounds are shown.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {
    "d_model": 64,
    "n_heads": 2,
    "n_kv_heads": 2,
    "sem_head_dim": 8,
    "geo_head_dim": 16,
    "v_head_dim": 16,
}
POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"
FILLED, WARMUP, STEPS = 160, 50, 400
PARTS = ("step", "kernels", "products", "heads", "around")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=20, help="processes of each checkout")
    parser.add_argument("--worker", action="store_true", help="measure the checkout on the path, as JSON")
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(measure()))
        return
    trees = {"this checkout": ROOT} | ({"the other": asked.against.resolve()} if asked.against else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for _ in range(asked.rounds):
        for name, tree in trees.items():
            found[name].append(in_a_process(tree))
    first = found["this checkout"][0]
    print(f"{first['machine']}, torch {first['torch']}, one thread, {asked.rounds} rounds of {STEPS} steps")
    print(f"{'microseconds':<16}" + "".join(f"{part:>10}" for part in PARTS))
    for name, rounds in found.items():
        medians = (statistics.median(each[part] for each in rounds) for part in PARTS)
        print(f"{name:<16}" + "".join(f"{median:>10.1f}" for median in medians))


def in_a_process(tree: Path) -> dict[str, Any]:
    """One round of a checkout."""
    surroundings = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    done = subprocess.run(command, env=surroundings, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure() -> dict[str, Any]:
    """Medians of the parts of a step, in microseconds."""
    import torch

    from dba_core import AttentionConfig, DecoupledAttention

    torch.set_num_threads(1)
    torch.manual_seed(0)
    attention = DecoupledAttention(AttentionConfig(**WIDTHS), decode_backend="cpu").eval()
    cache = attention.new_cache(batch=1, capacity=FILLED + 1 + WARMUP + STEPS, policy=POLICY)
    x = torch.randn(1, 1, WIDTHS["d_model"])
    backend = attention.decode_backend(cache)
    kernels: list[float] = []
    heads: list[float] = []
    vars(attention)["_heads"] = timed(attention._heads, heads)
    for owner, names in ((backend, ("_run", "_merge")), (backend.writer, ("_check", "_write"))):
        for name in names:
            vars(owner)[name] = timed(vars(owner)[name], kernels)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    with torch.inference_mode():
        attention(torch.randn(1, FILLED, WIDTHS["d_model"]), cache=cache)
        attention(x, cache=cache)
        inner_weights = weights_of(attention)
        for step in range(WARMUP + STEPS):
            kernels.clear()
            heads.clear()
            begun = time.perf_counter()
            attention(x, cache=cache)
            took = time.perf_counter() - begun
            last = product_time(attention.out_proj.weight, x)
            inner = sum(product_time(each, x) for each in inner_weights)
            around = took - sum(kernels) - sum(heads) - last
            parts = (took, sum(kernels), inner + last, sum(heads) - inner, around)
            if step >= WARMUP:
                for part, value in zip(PARTS, parts, strict=True):
                    seconds[part].append(value)
    medians: Mapping[str, float] = {part: statistics.median(all_) * 1e6 for part, all_ in seconds.items()}
    return {**medians, "machine": platform.processor() or platform.machine(), "torch": torch.__version__}


def weights_of(attention: Any) -> list[Any]:
    """Those that a token meets before it attends; where a checkout has one, the matrix of all projections."""
    made = vars(attention).get("_one_matrix")
    together = [] if made is None else [id(each) for each in made.sources]
    modules = (each for each in attention.modules() if each is not attention.out_proj)
    apart = [each.weight for each in modules if type(each).__name__ == "Linear"]
    return [each for each in apart if id(each) not in together] + ([] if made is None else [made.weight])


def timed(call: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    @functools.wraps(call, assigned=())
    def run(*given: Any) -> Any:
        begun = time.perf_counter()
        answer = call(*given)
        into.append(time.perf_counter() - begun)
        return answer

    return run


def product_time(weight: Any, x: Any) -> float:
    from torch.nn.functional import linear

    given = x if weight.shape[1] == x.shape[-1] else x[..., : weight.shape[1]]
    begun = time.perf_counter()
    linear(given, weight)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
