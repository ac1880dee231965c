"""Damaged files: what a download, a disk or a stranger may leave of a model, a run or a corpus.

A case is a pristine input, one of its files, and a seed. The file is damaged, the command that a user would
give is run on it, and what comes back is put in one of the classes of `Outcome`. Nothing here looks inside
the library: the command line is all that it uses.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import io
import json
import random
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from campaign_inputs import INPUTS, Input

from dba_cli.main import main

#: More than this above what the process had before is no reading of a file of some kilobytes.
MEMORY_LIMIT = 300 << 20


class Outcome(enum.Enum):
    """What a command made of a damaged file."""

    REFUSED = "refused with a reason"
    READ = "read as it stands"
    WRONG = "exit code 0 and a result that is no number"
    UNEXPECTED = "an exception that nobody meant"
    GREEDY = "took memory out of all proportion"


@attrs.frozen
class Case:
    """One damaged file and what became of it. said: the last of stderr, or of the traceback."""

    name: str
    file: str
    seed: int
    damage: str
    outcome: Outcome
    said: str


def run_case(one: Input, pristine: Path, scratch: Path, *, seed: int) -> Case:
    """Damage one file of `one` and run its command on it."""
    chance = random.Random(f"{one.name} {seed}")
    file = one.files[seed % len(one.files)]
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(pristine / one.name, scratch)
    damage = damage_file(scratch / file, chance)
    if file.endswith("state.json") and chance.random() < 0.7:
        _sign_again(scratch / file)
    before = _resident_peak(reset=True)
    outcome, said = _try(one.command(scratch))
    if _resident_peak() - before > MEMORY_LIMIT:
        outcome, said = Outcome.GREEDY, f"{(_resident_peak() - before) >> 20} MiB more; {said}"
    return Case(one.name, file, seed, damage, outcome, said)


def _sign_again(state: Path) -> None:
    """Let the pointers hold the hash of the damaged state: somebody who edits it by hand may do that too."""
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    for name in ("best", "last"):
        pointer = state.parent.parent / name
        pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "state_sha256": digest}))


def _try(command: Sequence[str]) -> tuple[Outcome, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(command)
    except BaseException:  # noqa: BLE001 - whatever it is, it is what the campaign counts
        return Outcome.UNEXPECTED, traceback.format_exc()[-2000:]
    if code:
        said = err.getvalue().strip()
        last = said[said.rfind("error: ") :] if "error: " in said else ""
        known = bool(last) and "Errno" not in last and "Traceback" not in said
        return (Outcome.REFUSED if known else Outcome.UNEXPECTED), said[-400:]
    return (Outcome.WRONG if _holds_no_number(out.getvalue()) else Outcome.READ), err.getvalue()[-200:]


def _holds_no_number(document: str) -> bool:
    """A loss or a fidelity figure that came out as null."""

    def bad(value: Any) -> bool:
        if isinstance(value, dict):
            return any(
                (item is None and key in ("loss", "nll", "perplexity", "kl", "delta_nll")) or bad(item)
                for key, item in value.items()
            )
        return isinstance(value, list) and any(map(bad, value))

    try:
        return bad(json.loads(document))
    except ValueError:
        return bool(document.strip())  # --json was asked for, and this is none


def _resident_peak(*, reset: bool = False) -> int:
    """Bytes: the most that the process held since the last reset. Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def damage_file(path: Path, chance: random.Random) -> str:
    """Damage the file; says how."""
    if path.suffix in (".json", "") and chance.random() < 0.7:
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            tree = None
        if isinstance(tree, dict):
            return _damage_json(path, tree, chance)
    if path.suffix == ".jsonl" and chance.random() < 0.7:
        return _damage_lines(path, chance)
    return _damage_bytes(path, chance)


def _damage_bytes(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    head = min(len(data), 4096)
    kind = chance.choice(
        ("flip", "flip", "flip", "length", "length", "cut", "zeros", "noise", "grow", "whole")
    )
    if kind == "flip":
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(head)] ^= 1 << chance.randrange(8)
    elif kind == "length":
        at = chance.randrange(max(1, head - 8))
        size = chance.choice((4, 8))
        number = chance.choice(
            (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, len(data))
        )
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    elif kind == "cut":
        data = data[: chance.randrange(len(data))]
    elif kind == "zeros":
        at = chance.randrange(len(data))
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == "noise":
        at = chance.randrange(head)
        data[at : at + 64] = chance.randbytes(len(data[at : at + 64]))
    elif kind == "grow":
        data += chance.randbytes(chance.choice((1, 100, 5000)))
    else:
        data = bytearray(
            chance.choice(
                (
                    b"",
                    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n",
                    b"<!DOCTYPE html><html>404</html>",
                    chance.randbytes(3000),
                    bytes(3000),
                    b"null",
                    b"[" * 100_000,
                    b"\xff\xfe{\x00}\x00",
                )
            )
        )
    path.write_bytes(data)
    return f"bytes: {kind}"


STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 2**31, 2**40, 2**63, -(2**70), 1e308, -0.5, 1.5, "", "x", "\ud800",
    "../../x", "/etc/passwd", "1", [], {}, [1], [[[]]], {"a": {}}, ["x", None], [2, 2],
)  # fmt: skip


def _damage_json(path: Path, tree: dict[str, Any], chance: random.Random) -> str:
    kind = chance.choice(("value", "value", "value", "value", "drop", "add", "swap", "root", "text", "deep"))
    places = list(_places(tree))
    if kind in ("value", "drop", "deep", "swap") and places:
        above, key = chance.choice(places)
        said = f"json: {kind} at {key!r}"
        if kind == "drop":
            del above[key]
        elif kind == "swap":
            other, name = chance.choice(places)
            above[key], other[name] = other[name], above[key]
        elif kind == "deep":
            above[key] = "DEEP"
        else:
            above[key] = chance.choice(STRANGE)
            said += f" = {str(above[key])[:20].encode('unicode_escape').decode()}"
    elif kind == "add":
        tree[chance.choice(("rope_scaling", "layers", "\x1b[31m", "", "files", "a.b"))] = chance.choice(
            STRANGE
        )
        said = "json: add"
    else:
        said = f"json: {kind}"
    text = json.dumps(tree)
    if kind == "deep":
        text = text.replace('"DEEP"', "[" * 50_000 + "]" * 50_000)
    elif kind == "root":
        text = json.dumps(chance.choice(STRANGE))
    elif kind == "text":
        text = chance.choice(
            (text[:-1], text + "}", text.replace(":", " ", 1), text.replace("1", "NaN", 1), "\ufeff" + text)
        )
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return said


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in the tree, long lists by their first items."""
    items = (
        list(tree.items())
        if isinstance(tree, dict)
        else list(enumerate(tree[:3]))
        if isinstance(tree, list)
        else []
    )
    return [place for key, value in items for place in [(tree, key), *_places(value)]]


def _damage_lines(path: Path, chance: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").split("\n")
    at = chance.randrange(len(lines) - 1)
    lines[at] = chance.choice(
        (
            "null",
            "[]",
            "{}",
            "3",
            '{"kind": "train"}',
            '{"step": "x"}',
            '{"step": null}',
            "{",
            "\x00",
            "[" * 50_000,
            '{"step": NaN}',
        )
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"line {at}: {lines[at][:20]!r}"


def make_all(root: Path) -> None:
    """The pristine inputs, each in a folder of its name; each command must succeed on them."""
    for one in INPUTS:
        folder = root / one.name
        folder.mkdir(parents=True)
        one.make(folder)
        scratch = root / "pristine"
        shutil.copytree(folder, scratch)
        outcome, said = _try(one.command(scratch))
        shutil.rmtree(scratch)
        shutil.rmtree(root / "pristine-out", ignore_errors=True)
        assert outcome is Outcome.READ, (one.name, outcome, said)


def damaged_files(root: Path, *, count: int, first_seed: int = 0) -> list[Case]:
    """`count` damaged files, spread evenly over the inputs."""
    make_all(root / "pristine inputs")
    cases = []
    for number in range(count):
        one, seed = INPUTS[number % len(INPUTS)], first_seed + number // len(INPUTS)
        cases.append(run_case(one, root / "pristine inputs", root / "case", seed=seed))
        shutil.rmtree(root / "case-out", ignore_errors=True)
    return cases
