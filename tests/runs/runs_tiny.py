"""A run that takes a second: two narrow layers on a counting song. Shared by the tests of this folder."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import attrs

from dba_cli.main import main
from dba_core.runs.folder import RunFolder

CONFIG = """
name = "tiny"
seed = 5

[model]
context = 16
n_layers = 2
d_model = 32

[model.attention]
n_heads = 2
sem_head_dim = 2
geo_head_dim = 4
v_head_dim = 6

[training]
steps = 8
batch_size = 4
warmup_steps = 2
eval_every = 4
eval_tokens = 128
log_every = 1

[evaluation]
fidelity_tokens = 40

[generation]
max_new_tokens = 12
"""
POLICY = "ksem=q4_0@8,kgeo=q8_0@8,v=q4_0@8,resid=4"


@attrs.frozen
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which is one JSON document."""
        return json.loads(self.out)


def dba(*args: str) -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(args))
    return Done(code, out.getvalue(), err.getvalue())


def write_inputs(folder: Path) -> list[str]:
    """The configuration and the text in `folder`; the arguments of `dba run` that use them."""
    config, text = folder / "tiny.toml", folder / "song.txt"
    config.write_text(CONFIG)
    text.write_text("".join(f"{n} green bottles hanging on the wall\n" for n in range(120, 0, -1)))
    return ["--config", str(config), "--data", str(text), "--kv-policy", POLICY]


def only_run(root: Path) -> RunFolder:
    """The one run in a folder."""
    (path,) = root.iterdir()
    return RunFolder(path)


def losses(folder: RunFolder) -> list[tuple[str, int, float]]:
    """(kind, step, loss) of every line of metrics.jsonl."""
    rows = map(json.loads, folder.metrics_file.read_text().splitlines())
    return [(row["kind"], row["step"], row["loss"]) for row in rows]
