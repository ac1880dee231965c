"""`dba config diff`: key by key, from files, runs and presets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def difference(dba, a: str, b: str) -> tuple[int, dict[str, tuple[object, object, str | None]]]:
    done = dba("config", "diff", a, b, "--json")
    document = json.loads(done.out)
    assert document["same"] == (not document["differences"])
    assert (document["a"], document["b"]) == (a, b)
    return done.code, {
        each["key"]: (each["a"], each["b"], each["only_in"]) for each in document["differences"]
    }


def test_the_same(dba, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[model]\nn_layers = 4\n")
    assert difference(dba, "a.toml", "preset:default") == (0, {})
    assert dba("config", "diff", "a.toml", "a.toml").out == "The two configurations are the same.\n"


def test_key_by_key(dba, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('seed = 1\n[plugins]\ngate = "static"\n[generation]\ntop_p = 1\n')
    (tmp_path / "b.json").write_text(
        json.dumps(
            {
                "seed": 2,
                "plugins": {
                    "gate": {"name": "causal", "options": {"init": 0.25}},
                    "layers": {"0-1": {"gate": "none"}},
                },
                "generation": {"top_p": 1.0},
            }
        )
    )
    code, found = difference(dba, "a.toml", "b.json")
    assert code == 1
    assert found == {
        "seed": (1, 2, None),
        "plugins.gate.name": ("static", "causal", None),
        "plugins.gate.options.init": (None, 0.25, "b"),
        "plugins.layers.0-1.gate.name": (None, "none", "b"),
        "plugins.layers.0-1.gate.record": (None, None, "b"),
    }
    assert difference(dba, "b.json", "a.toml")[1]["plugins.gate.options.init"] == (0.25, None, "a")
    table = dba("config", "diff", "a.toml", "b.json")
    assert table.code == 1
    assert ["plugins.gate.options.init", "not", "there", "0.25"] in [
        line.split() for line in table.out.splitlines()
    ]


def test_presets_and_runs(dba, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "20250101-000000-mine"
    folder.mkdir(parents=True)
    (folder / "resolved_config.json").write_text('{"seed": 77}')
    for run in ("latest", "mine", str(folder), str(folder / "resolved_config.json")):
        assert difference(dba, run, "preset:default") == (1, {"seed": (77, 1337, None)})
    code, found = difference(dba, "preset:default", "preset:shakespeare-cpu")
    assert code == 1
    assert found["model.context"] == (128, 64, None)


@pytest.mark.parametrize(
    ("a", "code", "hint"),
    [
        ("none.toml", 3, "none.toml does not exist"),
        ("preset:defalt", 3, "Did you mean 'default'"),
        ("nosuch", 2, "no run at 'nosuch'"),
        ("bad.toml", 3, "model.n_layers"),
    ],
)
def test_what_cannot_be_read(dba, tmp_path: Path, a: str, code: int, hint: str) -> None:
    (tmp_path / "bad.toml").write_text("[model]\nn_layers = true\n")
    done = dba("config", "diff", a, "preset:default")
    assert (done.code, done.out) == (code, "")
    assert hint in done.err
