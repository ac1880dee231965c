"""The whole campaign: `python tests/campaign --files 1000 --kills 100 --signals 30 --pairs 20`.

Prints a table in markdown, the one of docs/reliability.md, and after it each try that went wrong. Ends with
exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

DISKS_KIB = (16, 40, 60, 80, 120, 160, 200, 240, 280)


def main() -> int:
    numbers = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("files", 1000),
        ("kills", 100),
        ("signals", 30),
        ("pairs", 20),
        ("disks", len(DISKS_KIB)),
    ):
        numbers.add_argument(f"--{name}", type=int, default=default)
    numbers.add_argument("--seed", type=int, default=0)
    given = numbers.parse_args()
    problems: list[str] = []
    print("| what | tries | as it should be |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row, bad in _rows(Path(folder), given):
            print(row, flush=True)
            problems += bad
    print("\n".join(["", *problems]))
    return bool(problems)


def _rows(root: Path, given: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """(a row of the table, what went wrong) of each part that was asked for."""
    import campaign_files as files
    import campaign_processes as processes

    if given.files:
        good = (files.Outcome.REFUSED, files.Outcome.READ)
        cases = files.damaged_files(root / "files", count=given.files, first_seed=given.seed)
        for name in dict.fromkeys(case.name for case in cases):
            own = [case for case in cases if case.name == name]
            bad = [case for case in own if case.outcome not in good]
            counts = Counter(case.outcome.value for case in own)
            shown = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            row = f"| damaged files: {name} | {len(own)} | {len(own) - len(bad)} ({shown}) |"
            yield (
                row,
                [f"{case.name} {case.file} seed {case.seed} ({case.damage}): {case.said}" for case in bad],
            )
    parts = (
        (given.kills, lambda place: processes.kills(place, count=given.kills, seed=given.seed)),
        (given.signals, lambda place: processes.signals(place, count=given.signals)),
        (given.pairs, lambda place: processes.two_processes(place, count=given.pairs)),
        (
            given.disks and processes.can_mount(),
            lambda place: processes.full_disk(place, sizes_kib=DISKS_KIB[: given.disks]),
        ),
    )
    for number, (wanted, run) in enumerate(parts):
        if wanted:
            place = root / f"part-{number}"
            place.mkdir()
            tries = run(place)
            yield f"| {tries.name} | {tries.count} | {tries.count - len(tries.bad)} |", list(tries.bad)


if __name__ == "__main__":
    sys.exit(main())
