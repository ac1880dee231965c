"""Plugins from outside: one of each kind as `dba plugins new` writes it, and the documentation's examples.

They are built, installed beside the library, listed, checked, tested by their own tests, and run; then a
broken one and one with a name that is taken come beside them, and nothing else breaks.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from third_party_site import ThirdPartySite

from dba_cli.scaffold.package import PluginPackage, write_package
from dba_core.contracts import Kind
from dba_core.kinds import KINDS

pytestmark = [pytest.mark.torch, pytest.mark.slow]

EXAMPLE_FOLDERS = Path(__file__).resolve().parents[2] / "docs" / "examples"
SCAFFOLD: dict[Kind, str] = {kind: f"my-{kind.replace('_', '-')}" for kind in KINDS}
EXAMPLES: dict[str, Kind] = {"attention-pooling": "summarizer", "sdpa": "decode_backend"}
FOLDERS = {"attention-pooling": "attention-pooling", "sdpa": "sdpa-decode"}
INSTALLED: list[tuple[Kind, str]] = [
    *SCAFFOLD.items(),
    *((kind, name) for name, kind in EXAMPLES.items()),
]

CONFIG = """
[model]
context = 32
n_layers = 2
d_model = 32
[model.attention]
n_heads = 2
sem_head_dim = 2
geo_head_dim = 4
v_head_dim = 6
[model.train_long_seq]
threshold = 32
local_window = 8
mem_block = 4
q_chunk = 8
[training]
steps = 3
batch_size = 2
warmup_steps = 1
eval_every = 3
eval_tokens = 64
[evaluation]
fidelity_tokens = 40
[generation]
max_new_tokens = 8
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ThirdPartySite:
    """With one plugin of each kind and both examples installed, and a small run's configuration."""
    root = tmp_path_factory.mktemp("ecosystem")
    made = ThirdPartySite.make(root)
    folders = []
    for kind, name in SCAFFOLD.items():
        package = PluginPackage(kind=kind, name=name)
        write_package(package, root / package.distribution)
        folders.append(root / package.distribution)
    for name, folder in FOLDERS.items():
        shutil.copytree(EXAMPLE_FOLDERS / folder, root / f"dba-{folder}")
        assert (root / f"dba-{folder}").is_dir(), name
        folders.append(root / f"dba-{folder}")
    made.install(*folders)
    (root / "text.txt").write_text(
        "one two three four five, once I caught a fish alive. " * 80, encoding="utf-8"
    )
    (root / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return made


def tiny_run(site: ThirdPartySite, name: str, *args: str) -> tuple[str, ...]:
    return (
        *("run", "--config", "tiny.toml", "--data", "text.txt", "--set", "device=cpu"),
        *("--out", f"runs-{name}", *args),
    )


def test_all_are_listed_with_their_distribution(site: ThirdPartySite) -> None:
    listed = site.dba("plugins", "list", "--json")
    found = {(plugin["kind"], plugin["name"], plugin["distribution"]) for plugin in listed.json["plugins"]}
    expected = {(kind, name, f"dba-{name}") for kind, name in SCAFFOLD.items()}
    expected |= {(kind, name, f"dba-{FOLDERS[name]}") for name, kind in EXAMPLES.items()}
    assert expected <= found
    assert all(plugin["problem"] is None for plugin in listed.json["plugins"])


def test_each_passes_the_check(site: ThirdPartySite) -> None:
    """In small sizes: its own tests run the whole contract."""
    done = site.lines(*(("plugins", "check", name, "--kind", kind, "--quick") for kind, name in INSTALLED))
    assert [each for each in done if each.code] == []


def test_each_passes_its_own_tests(site: ThirdPartySite) -> None:
    folders = [site.root / f"dba-{FOLDERS.get(name, name)}" for _, name in INSTALLED]
    done = site.run("-m", "pytest", "-q", "-rA", "-W", "error", "--rootdir", site.root, *folders)
    assert done.code == 0, done.out + done.err
    passed = [line.split()[1] for line in done.out.splitlines() if line.startswith("PASSED")]
    assert {Path(each).parts[0] for each in passed} == {folder.name for folder in folders}


def test_each_runs_in_the_main_job(site: ThirdPartySite) -> None:
    per_layer = [(kind, name) for kind, name in INSTALLED if KINDS[kind].per_layer]
    done = site.lines(*(tiny_run(site, name, "--plugin", f"{kind}={name}") for kind, name in per_layer))
    assert [each for each in done if each.code] == []
    recorded = [next((site.root / f"runs-{name}").glob("*/resolved_config.json")) for _, name in per_layer]
    shown = site.lines(*(("config", "show", "--config", file) for file in recorded))
    assert all(name in each.out for (_, name), each in zip(per_layer, shown, strict=True)), shown


def test_an_installed_format_serves_the_main_job_and_sampling(site: ThirdPartySite) -> None:
    name = SCAFFOLD["kv_format"]
    policy = f"ksem={name},kgeo={name},v={name},resid=4"
    done, refused, blocked, sampled = site.lines(
        tiny_run(site, name, "--kv-policy", policy),
        tiny_run(site, f"{name}-cpu", "--kv-policy", policy, "--plugin", "decode_backend=cpu"),
        tiny_run(site, f"{name}-off", "--kv-policy", policy, "--no-plugin", f"kv_format={name}"),
        ("sample", site.root / f"runs-{name}" / "latest", "--prompt", "one two ", "--max-new-tokens", "3"),
    )
    assert done.code == 0, done.out + done.err
    run = next((site.root / f"runs-{name}").glob("*/resolved_config.json")).parent
    recorded = json.loads((run / "resolved_config.json").read_text(encoding="utf-8"))
    assert recorded["kv_policy"].startswith(f"ksem={name}")
    assert recorded["plugins"]["decode_backend"]["name"] == "streaming"
    assert sampled.code == 0, sampled.err
    assert refused.code != 0
    assert name in refused.err
    assert blocked.code == 4
    assert f"--no-plugin kv_format={name}" in blocked.err
    assert not list((site.root / f"runs-{name}-off").glob("*/checkpoint"))


def test_a_broken_plugin_and_a_duplicate_break_nothing_else(site: ThirdPartySite) -> None:
    broken = PluginPackage(kind="gate", name="broken")
    write_package(broken, site.root / broken.distribution)
    (site.root / broken.distribution / f"{broken.module}.py").write_text(
        "import a_module_that_nobody_has\n", encoding="utf-8"
    )
    twin = PluginPackage(kind="summarizer", name="mean")
    write_package(twin, site.root / twin.distribution)
    site.install(site.root / broken.distribution, site.root / twin.distribution)

    listed = site.dba("plugins", "list")
    assert listed.code == 0, listed.err
    doctor, sound, asked, ambiguous, ours, theirs = site.lines(
        ("plugins", "doctor"),
        tiny_run(site, "broken", "--plugin", "gate=causal"),
        tiny_run(site, "asked", "--plugin", "gate=broken"),
        *(
            tiny_run(site, which.replace(":", "-"), "--plugin", f"summarizer={which}")
            for which in ("mean", "dba-attention:mean", "dba-mean:mean")
        ),
    )
    assert doctor.code == 4, doctor.out + doctor.err
    assert "a_module_that_nobody_has" in doctor.out + doctor.err
    assert sound.code == 0, sound.err
    assert asked.code == 4
    assert "a_module_that_nobody_has" in asked.err
    assert ambiguous.code == 4
    assert "dba-attention:mean" in ambiguous.err
    assert "dba-mean:mean" in ambiguous.err
    for done in (ours, theirs):
        assert done.code == 0, done.err
