"""Wrong command lines and where their answers point: one paragraph, the right exit code, the next step."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import click
import pytest

from dba_cli.failure import os_error_text

#: Command line, exit code, what the answer holds, and after "!" what it does not.
LINES = """
run --steps 100                        | 2 | --set training.steps=100
run --steps=100                        | 2 | --set training.steps=100
run --lr 1e-3                          | 2 | --set training.lr=1e-3
run --epochs 3                         | 2 | --set training.steps=3
run --batch-size 8                     | 2 | --set training.batch_size=8
run --context 256                      | 2 | --set model.context=256
run --layers 4                         | 2 | --set model.n_layers=4
run --seed 3                           | 2 | --set seed=3
run --steps                            | 2 | --set training.steps=VALUE
run --gate static                      | 2 | --plugin gate=static
run --gpu                              | 2 | Write --device cuda.
run --output here                      | 2 | Write --out here
run --dataset book.txt                 | 2 | Write --data book.txt
run --quite                            | 2 | '--quiet'
config show --steps 3                  | 2 | --set training.steps=3
bench train --steps 3                  | 2 | --set training.steps=3
eval latest --steps 3                  | 2 | dba run --set training.steps=3
eval latest --set seed=3               | 2 | an option of `dba run`
eval latest --gate static              | 2 | dba run --plugin gate=static
sample latest --preset default         | 2 | an option of `dba run`
drift latest --out x                   | 2 | Write --save x
drift latest --lr 3                    | 2 | dba run --set training.lr=3
tune latest --budget 3                 | 2 | '--budget-bytes'
bench decode --context 4096            | 2 | Write --length 4096
bench decode --steps 4                 | 2 | No such option ! dba run --set
run latest                             | 2 | dba run --resume latest
run book.txt                           | 2 | Write --data book.txt
run my.toml                            | 2 | Write --config my.toml
run paper-gqa                          | 2 | Write --preset paper-gqa
run model.d_model=3                    | 2 | Write --set model.d_model=3
run gate=static                        | 2 | Write --plugin gate=static
run ksem=fp16,kgeo=fp16,v=fp16         | 2 | Write --kv-policy
config show paper-gqa                  | 2 | Write --preset paper-gqa
config presets paper-gqa               | 2 | dba config show --preset paper-gqa
config diff default default            | 2 | preset:default
plugins list gate                      | 2 | Write --kind gate
eval latest first                      | 2 | one run at a time
sample                                 | 2 | Make one with: dba run
bench quality                          | 2 | Make one with: dba run
sample latest --prompt a               | 2 | Make one with: dba run
plugins info                           | 2 | dba plugins list
plugins why                            | 2 | KIND. Allowed: summarizer, gate
plugins why gates                      | 2 | Did you mean 'gate'?
plugins list --kind gat                | 2 | Did you mean 'gate'?
completion bsh                         | 2 | Did you mean 'bash'
evla latest                            | 2 | Did you mean 'eval'?
plugin list                            | 2 | Did you mean 'plugins'
plugins show causal                    | 2 | Did you mean 'info'?
train                                  | 2 | Did you mean 'run'?
help                                   | 2 | write dba --help ! eval
bench decode --threads 0               | 2 | 1 to 1024
bench decode --threads -1              | 2 | 1 to 1024
bench decode --threads 1000000000      | 2 | 1 to 1024
bench decode --threads all             | 2 | leave
run --set d_model=96                   | 3 | 'model.d_model'
run --set steps=96                     | 3 | 'training.steps'
run --set model.steps=96               | 3 | 'training.steps'
run --set attention.n_heads=2          | 3 | 'model.attention'
run --set learning_rate=1              | 3 | 'training.lr'
run --set dmodel=3                     | 3 | 'model.d_model'
run --set model.d_modl=3               | 3 | 'd_model'
run --set stepz=3                      | 3 | 'training.steps'
run --set training.steps=1e3           | 3 | write 1000
run --set training.steps=1.5           | 3 | a whole number ! write 1
run --set training.steps=ten           | 3 | a whole number
run --set model.attention.mode=gqua    | 3 | Did you mean 'gqa'?
run --plugin conv                      | 3 | --plugin summarizer=conv
run --plugin gate                      | 3 | --plugin gate=causal
run --plugin gat=static                | 3 | Did you mean 'gate'?
run --plugin gate=auto:init=3          | 3 | choose one by name
run --plugin gate=causl                | 4 | Did you mean 'causal'?
run --plugin gate=conv                 | 4 | choose it with --plugin summarizer=conv
run --plugin gate=learned              | 4 | a null_token: choose it with --plugin null_token=learned
run --plugin gate=static:nonsense      | 4 | gate=static:KEY=VALUE
run --no-plugin conf                   | 4 | Did you mean 'conv'
run --dry-run --plugin gate=causl      | 4 | Did you mean 'causal'?
plugins why gate --plugin gate=causl   | 4 | Did you mean 'causal'?
drift latest --summarizer menn         | 4 | Did you mean 'mean'?
bench decode --backend cppu            | 4 | Did you mean 'cpu'?
run --preset shakespeare               | 3 | Did you mean 'shakespeare-cpu'?
run --device gpu                       | 3 | Did you mean 'cuda'? ! --set
run --device cuda0                     | 3 | Did you mean 'cuda:0'?
run --device 1                         | 3 | Did you mean 'cuda:1'?
run --device mps                       | 3 | not supported
eval latest --device gpu               | 3 | Did you mean 'cuda'?
run --data https://example.org/a.txt   | 3 | downloads nothing
run --data pydocs                      | 3 | Did you mean 'pydoc'?
eval latest --data nosuch.txt          | 3 | no file or folder 'nosuch.txt'
run --config folder                    | 3 | is a folder
run --config made                      | 3 | --config made/resolved_config.json
run --config typo.toml                 | 3 | 'training.steps'
run --kv-policy ksem=q4,kgeo=fp16,v=fp16         | 3 | ksem: unknown cache format 'q4'. Did you mean 'q4_0'?
run --kv-policy ksem=fp16,kgeo=FP16,v=fp16       | 3 | kgeo: unknown cache format 'FP16'. Did you mean 'fp16'?
run --kv-policy ksem=fp16,kgeo=fp16,v=int4       | 3 | v: unknown cache format 'int4'. Did you mean 'q4_0'?
run --kv-policy ksem=q4_0@33,kgeo=fp16,v=fp16    | 3 | allowed: 8, 16, 32
run --kv-policy ksem=fp16,kgeo=fp16,v=fp16,resid=all | 3 | resid='all'
run --kv-policy k_sem=fp16,kgeo=fp16,v=fp16      | 3 | Did you mean 'ksem'?
run --kv-policy q4_0                             | 3 | Example: ksem=
"""
CASES = [[part.strip() for part in line.split("|")] for line in LINES.strip().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "resolved_config.json").write_text("{}")
    (tmp_path / "typo.toml").write_text("stepz = 3\n")
    return tmp_path


@pytest.mark.parametrize(("line", "code", "told"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_line_is_answered_with_the_next_step(
    dba, files: Path, line: str, code: str, told: str
) -> None:
    done = dba(*shlex.split(line))
    wanted, _, unwanted = told.partition(" ! ")
    assert done.code == int(code), done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, "one paragraph"
    assert wanted in done.err
    assert not unwanted or unwanted not in done.err
    assert ".." not in done.err.replace("...", "")
    assert not any(raw in done.err for raw in ("Errno", "Traceback", "error: unexpected"))


def test_what_there_is_is_named_where_a_run_was_left_out(dba, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "20250101-000000-mine"
    folder.mkdir(parents=True)
    (folder / "resolved_config.json").write_text("{}")
    assert "20250101-000000-mine" in dba("eval").err
    told = dba("run", "20250101-000000-mine").err
    assert f"--config {Path('runs', '20250101-000000-mine', 'resolved_config.json')}" in told


def test_names_are_refused_before_torch_is_imported(dba_process) -> None:
    """Seconds pass until torch is there; a slip of the hand should not wait for them."""
    lines = [
        ["run", "--plugin", "gate=causl"],
        ["run", "--dry-run", "--plugin", "gate=conv"],
        ["run", "--no-plugin", "conf"],
        ["run", "--data", "nosuch.txt"],
        ["run", "--device", "gpu"],
        ["run", "--set", "steps=3"],
        ["plugins", "why", "gate", "--plugin", "gate=causl"],
        ["sample", "made", "--prompt", "a", "--plugin", "decode_backend=cppu"],
        ["eval", "made", "--device", "gpu"],
        ["eval", "made", "--data", "nosuch.txt"],
        ["drift", "made", "--summarizer", "menn"],
        ["bench", "decode", "--backend", "cppu"],
    ]
    code = (
        "import sys, pathlib\nfrom dba_cli.main import main\n"
        "made = pathlib.Path('made')\nmade.mkdir()\n(made / 'resolved_config.json').write_text('{}')\n"
        f"print([main(line) for line in {lines!r}], 'torch' in sys.modules)\n"
    )
    done = dba_process(code=code)
    assert done.out == "[4, 4, 4, 3, 3, 3, 4, 4, 3, 3, 4, 4] False\n", done.err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b.txt"), "'a/b.txt' does not exist"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a"), "'a' may not be read or written"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a"), "the disk is full"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "a file does not fit"),
        (IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "a"), "'a' is a folder. Give a file"),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"),
            "'a' or 'b': Invalid",
        ),
        (OSError("said by a library"), "said by a library"),
    ],
)
def test_what_the_system_refused_is_a_sentence(error: OSError, told: str) -> None:
    text = os_error_text(error)
    assert told in text
    assert "Errno" not in text
    assert text.endswith(".")


def test_an_error_of_the_system_reaches_the_terminal_as_a_sentence(
    dba, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: click.Command, ctx: click.Context) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "gone.txt")

    monkeypatch.setattr(click.Command, "invoke", refuse)
    done = dba("config", "presets")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: 'gone.txt' does not exist")
