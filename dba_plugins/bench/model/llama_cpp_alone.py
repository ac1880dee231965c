"""A process in which llama.cpp alone has a model, without torch: what is resident after a turn.

resident = VmRSS, in bytes                    Linux alone tells
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Of this process, now."""
    found = re.search(r"^VmRSS:\s*(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure_alone(asked: str) -> int:
    given = json.loads(asked)
    llama: Any = importlib.import_module("llama_cpp").Llama(**given["settings"])
    llama.eval(given["prompt"])
    for _ in range(given["new_tokens"]):
        llama.eval(given["prompt"][:1])
    return resident()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(str(measure_alone(sys.stdin.read())), encoding="utf-8")
