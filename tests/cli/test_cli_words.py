"""What the core says in Python, as the command line says it."""

import pytest

from dba_cli.failure import in_flags


@pytest.mark.parametrize(
    ("core", "shown"),
    [
        ("run with allow_drift=True.", "run with --allow-drift."),
        ("strict=True allows no fallback", "--strict allows no fallback"),
        ("sets=['a'] is no pair", "--set a is no pair"),
        ("sets=['a b'] is no pair", "--set 'a b' is no pair"),
        ('plugins=["it\'s"] is no pair', '--plugin "it\'s" is no pair'),
        (r"plugins=['a\x1b[1m'] is", r"--plugin 'a\x1b[1m' is"),
        ("(set by sets=)", "(set by --set)"),
        ("a='x' (data=) and b='y' (plugins=) are one", "a='x' (--data) and b='y' (--plugin) are one"),
        ("choose plugins.gate=soft.", "choose --plugin gate=soft."),
        ("choose plugins.layers.0-1,3.gate=NAME.", "choose --plugin gate@layers.0-1,3=NAME."),
        ("give config_file='runs/a/b.json'", "give --config runs/a/b.json"),
        ("blocked by Access(blocked=['other:*'])", "blocked by --no-plugin other:*"),
        ("Access.blocked: unknown plugin", "--no-plugin: unknown plugin"),
        ("go on with resume_job('runs/a')", "go on with dba run --resume runs/a"),
    ],
)
def test_in_flags(core: str, shown: str) -> None:
    assert in_flags(core) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plugins.gate.name='x' (set by file a.toml)",
        "model.name='x' is wrong",
        "the file's name='x' and data='y'",
        "<PluginChoice: soft, kv_policy_of=1>",
        "plugins.layers.0-3: layer 3 is not there",
    ],
)
def test_what_is_no_argument_stays(text: str) -> None:
    assert in_flags(text) == text
