"""The command line without torch: help, hints, exit codes, refused flags, JSON documents."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dba_cli.hints import LEGACY_FLAGS
from dba_cli.main import cli

COMMANDS = {
    (): ["run", "sample", "eval", "drift", "plugins", "config", "completion"],
    ("run",): [],
    ("sample",): [],
    ("eval",): [],
    ("drift",): [],
    ("completion",): [],
    ("plugins",): ["info", "list", "doctor", "why"],
    ("plugins", "doctor"): [],
    ("plugins", "list"): [],
    ("plugins", "info"): [],
    ("plugins", "why"): [],
    ("config",): ["check", "diff", "presets", "show"],
    ("config", "diff"): [],
    ("config", "show"): [],
    ("config", "check"): [],
    ("config", "presets"): [],
}
POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=64"


def examples(text: str) -> list[str]:
    """The lines of a help text that are invocations."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("dba ")]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_names_the_subcommands_and_shows_an_example(dba, path) -> None:
    done = dba(*path, "--help")
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"Usage: dba {' '.join(path)}".rstrip())
    for name in COMMANDS[path]:
        assert f"  {name} " in done.out
    assert COMMANDS[path] or examples(done.out), "a command's help shows how it is called"


@pytest.mark.parametrize("path", [path for path in COMMANDS if not COMMANDS[path]], ids=" ".join)
def test_every_example_in_the_help_parses(path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, ctx: reached.append(ctx.command_path))
    runner = CliRunner()
    lines = examples(runner.invoke(cli, [*path, "--help"], prog_name="dba").output)
    assert lines
    for line in lines:
        words = shlex.split(line.rpartition("&&")[2].partition(">")[0])
        cli.main(words[1:], prog_name="dba", standalone_mode=False)
        assert reached.pop() == " ".join(["dba", *path]), line


def test_without_arguments_the_help_is_shown(dba) -> None:
    assert dba().out == dba("--help").out
    assert dba("plugins").out == dba("plugins", "--help").out


def test_version_is_that_of_the_distribution(dba) -> None:
    from importlib.metadata import version

    assert dba("--version").out == f"dba {version('dba-attention')}\n"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["plugins", "lst"], "Did you mean 'list'?"),
        (["run", "--presett", "default"], "Did you mean '--preset'"),
        (["run", "--kv_policy", POLICY], "Did you mean '--kv-policy'?"),
        (["sample"], "Missing argument 'RUN'"),
        (["plugins", "why", "gat"], "'gate'"),
        (["sample", "x", "--checkpoint", "newest"], "'best'"),
        (["run", "--resume", "x", "--dry-run"], "exclude each other"),
        (["run", "--print-config", "--strict", "--no-plugin", "conv"], "leave out --no-plugin, --strict"),
        (["run", "--resume", "x", "--set", "seed=1", "--kv-policy", POLICY], "--set, --kv-policy cannot"),
        (["sample", "x"], "--prompt"),
        (["sample", "x", "--prompt-file", "none.txt"], "none.txt"),
        (["sample", "nosuch", "--prompt", "a"], "no run at 'nosuch'"),
        (["eval", "latest"], "dba run"),
        (["run", "--resume", "nosuch"], "no run at 'nosuch'"),
        (["sample", "x", "--prompt", "a", "--plugin", "gate=static"], "only decode_backend"),
    ],
)
def test_usage_errors_exit_2_with_a_hint(dba, args: list[str], hint: str) -> None:
    done = dba(*args)
    assert done.code == 2
    assert done.out == ""
    assert hint in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, "one paragraph"


def test_a_gone_flag_is_no_suggestion(dba) -> None:
    done = dba("run", "--kv-qblok", "32")
    assert done.code == 2
    assert "--kv-qblock" not in done.err


def test_the_gone_flags_are_known_in_both_spellings() -> None:
    for name in (
        "kv-cache",
        "kv-cache-k-sem",
        "kv-cache-k-geo",
        "kv-cache-v",
        "kv-qblock",
        "kv-qblock-k-sem",
    ):
        assert {f"--{name}", f"--{name.replace('-', '_')}"} <= set(LEGACY_FLAGS)
    assert {"--kv-qblock-v", "--kv_qblock_k_geo", "--kv-residual", "--kv_residual"} <= set(LEGACY_FLAGS)


@pytest.mark.parametrize("command", ["run", "sample", "eval"])
@pytest.mark.parametrize("flag", LEGACY_FLAGS)
def test_gone_flags_are_refused_with_the_way_out(dba, command: str, flag: str) -> None:
    for words in ([flag, "q4_0"], [f"{flag}=32"], [flag], ["somewhere", flag, "64"]):
        if command == "run" and words[0] == "somewhere":
            words = ["--name", *words]
        done = dba(command, *words)
        assert done.code == 2
        assert done.out == ""
        assert f"{flag} is not an option any more" in done.err
        assert "Use --kv-policy for a unified configuration." in done.err
        assert "Example: dba " in done.err


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["config", "show", "--set", "model.d_modl=3"], "Did you mean 'd_model'?"),
        (["config", "show", "--preset", "defalt"], "Did you mean 'default'?"),
        (["config", "show", "--kv-policy", "ksem=q4"], "q4_0"),
        (["config", "show", "--plugin", "gat=static"], "Did you mean 'gate'?"),
        (["config", "check", "none.toml"], "none.toml does not exist"),
        (["run", "--print-config", "--set", "training.steps=3.7"], "whole number"),
        (["sample", "x", "--prompt", "a", "--kv-policy", "ksem=q5_0,kgeo=fp16,v=fp16"], "q5_0"),
        (["eval", "x", "--kv-policy", "resid=3"], "lacks ksem"),
    ],
)
def test_configuration_errors_exit_3(dba, args: list[str], hint: str) -> None:
    done = dba(*args)
    assert done.code == 3
    assert done.out == ""
    assert hint in done.err


def test_an_unknown_plugin_exits_4(dba) -> None:
    done = dba("plugins", "info", "cusal")
    assert done.code == 4
    assert "Did you mean 'causal'" in done.err


def test_print_config_can_be_fed_back(dba, tmp_path: Path) -> None:
    given = ["--preset", "shakespeare-cpu", "--data", 'a "quoted" päth.txt', "--name", "mine", "--compile"]
    given += ["--device", "cpu", "--plugin", "null_token=learned", "--kv-policy", POLICY, "--set", "seed=7"]
    printed = dba("run", "--print-config", *given)
    assert printed.code == 0
    (tmp_path / "again.toml").write_text(printed.out, encoding="utf-8")
    first = json.loads(dba("run", "--print-config", "--json", *given).out)
    again = json.loads(dba("config", "show", "--json", "--config", "again.toml").out)
    assert again["config"] == first["config"]
    assert first["config"]["data"]["source"] == 'a "quoted" päth.txt'
    assert first["config"]["training"]["compile"] is True
    assert first["config"]["kv_policy"] == POLICY
    origins = first["origins"]
    flags = {"data.source": "--data", "name": "--name", "training.compile": "--compile", "seed": "--set"}
    assert {key: origins[key] for key in flags} == flags
    assert origins["plugins.null_token.name"] == "--plugin"
    assert origins["kv_policy"] == "--kv-policy"
    assert origins["model.d_model"] == "preset shakespeare-cpu"
    assert origins["training.grad_clip"] == "default"
    assert set(again["origins"].values()) <= {"file again.toml", "default"}
    assert list(tmp_path.iterdir()) == [tmp_path / "again.toml"], "nothing else is written"


def test_the_environment_sets_values(dba, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBA__MODEL__D_MODEL", "48")
    shown = json.loads(dba("config", "show", "--json").out)
    assert shown["config"]["model"]["d_model"] == 48
    assert shown["origins"]["model.d_model"] == "environment DBA__MODEL__D_MODEL"
    assert (
        json.loads(dba("config", "show", "--json", "--set", "model.d_model=96").out)["config"]["model"][
            "d_model"
        ]
        == 96
    )


def test_config_check_says_what_a_file_sets(dba, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("seed = 3\n[model]\nn_layers = 2\n")
    assert json.loads(dba("config", "check", "my.toml", "--json").out) == {
        "file": "my.toml",
        "valid": True,
        "sets": ["model.n_layers", "seed"],
    }
    assert "model.n_layers, seed" in dba("config", "check", "my.toml").out
    (tmp_path / "bad.toml").write_text("[model]\nn_layers = true\n")
    bad = dba("config", "check", "bad.toml", "--json")
    assert (bad.code, bad.out) == (3, "")
    assert "model.n_layers" in bad.err


def test_the_configuration_of_the_latest_run(dba, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "20250101-000000-a"
    folder.mkdir(parents=True)
    (folder / "resolved_config.json").write_text('{"seed": 77}')
    shown = json.loads(dba("config", "show", "--json", "--config", "runs/latest/resolved_config.json").out)
    assert shown["config"]["seed"] == 77
    assert shown["origins"]["seed"] == f"file {Path('runs', folder.name, 'resolved_config.json')}"
    missing = dba("config", "show", "--config", "runs/oldest/resolved_config.json")
    assert missing.code == 2
    assert "20250101-000000-a" in missing.err


def test_presets_are_listed(dba) -> None:
    listed = json.loads(dba("config", "presets", "--json").out)
    names = [preset["name"] for preset in listed]
    assert names[0] == "default"
    assert {"shakespeare-cpu", "paper-decoupled", "paper-bottleneck", "paper-gqa", "paper-baseline"} <= set(
        names
    )
    table = dba("config", "presets").out
    assert all(name in table for name in names)


def test_plugins_are_listed_from_metadata(dba) -> None:
    listed = json.loads(dba("plugins", "list", "--json").out)["plugins"]
    ours = {
        (plugin["kind"], plugin["name"]) for plugin in listed if plugin["distribution"] == "dba-attention"
    }
    assert {
        ("gate", "causal"),
        ("gate", "static"),
        ("null_token", "learned"),
        ("decode_backend", "streaming"),
    } <= ours
    gates = json.loads(dba("plugins", "list", "--kind", "gate", "--json").out)["plugins"]
    assert {plugin["kind"] for plugin in gates} == {"gate"}
    table = dba("plugins", "list").out
    assert all(name in table for _, name in ours)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_dba(dba, shell: str) -> None:
    done = dba("completion", shell)
    assert done.code == 0
    assert f"_DBA_COMPLETE={shell}_complete" in done.out
