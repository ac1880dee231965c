"""A checkpoint source from outside: `dba convert` takes its files to the end.

Broken ones stand beside it: they are named, and break nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from third_party_site import ThirdPartySite

from dba_cli.scaffold.package import PluginPackage, write_package

pytestmark = [pytest.mark.torch, pytest.mark.slow]

GOOD = "my-arrays"
#: What stands in the place of a source's module, by the name of the plugin.
BROKEN = {
    "no-module": "import a_module_that_nobody_has\n",
    "no-answer": """
from dba_core import hookimpl
from dba_core.contracts import NoOptions

class Source:
    name, contract, summary, options_class = "no-answer", 1, "raises when it is asked", NoOptions

    def supports(self, request, options):
        raise RuntimeError("a question too many")

    def build(self, request, options): ...

    def example(self, folder): ...

@hookimpl
def dba_checkpoint_source():
    return Source()
""",
    "no-model": """
from dba_core import hookimpl
from dba_core.contracts import NoOptions, Reason, Support

class Source:
    name, contract, summary, options_class = "no-model", 1, "opens nothing", NoOptions

    def supports(self, request, options):
        if request.path.suffix == ".odd":
            return Support.yes()
        return Support.no(Reason(subject="path", got="no .odd", supported="a .odd file", action="Make one."))

    def build(self, request, options):
        print("on the way")
        raise RuntimeError("nothing inside")

    def example(self, folder): ...

@hookimpl
def dba_checkpoint_source():
    return Source()
""",
}
EXAMPLE = f"""
from pathlib import Path
from dba_core import Registry
print(Registry.default().load("checkpoint_source", "{GOOD}").plugin.example(Path.cwd()))
"""


def package(root: Path, name: str) -> Path:
    made = PluginPackage(kind="checkpoint_source", name=name)
    write_package(made, root / made.distribution)
    if name in BROKEN:
        (root / made.distribution / f"{made.module}.py").write_text(BROKEN[name], encoding="utf-8")
    return root / made.distribution


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ThirdPartySite:
    """With one sound source and three broken ones, and a model and texts for them."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = ThirdPartySite.make(root)
    made.install(*(package(root, name) for name in (GOOD, *BROKEN)))
    for name, text in (("a.txt", "the quick brown fox. "), ("b.txt", "once I caught a fish alive. ")):
        (root / name).write_text(text * 40, encoding="utf-8")
    assert made.run("-c", EXAMPLE).code == 0
    (root / "model.odd").write_bytes(b"odd")
    return made


def convert(model: str, out: str) -> tuple[str, ...]:
    return (
        *("convert", model, "--out", out, "--tokenizer", "bytes", "--pairs", "2", "--context", "16"),
        *("--calibrate", "a.txt", "--calibrate-tokens", "32", "--eval", "b.txt", "--eval-tokens", "32"),
        *("--no-comparators", "--json"),
    )


def test_its_files_are_converted_to_the_end(site: ThirdPartySite) -> None:
    done, shown = site.lines(
        convert("model.npz", "out"), ("sample", "out", "--prompt", "once", "--max-new-tokens", "2")
    )
    assert done.code == 0, done.err
    report = done.json
    assert (report["source"], report["family"], report["files"]) == ("model", "llama", ["model.npz"])
    assert [variant["key"] for variant in report["variants"]] == ["original", "converted", "converted_policy"]
    assert shown.code == 0, shown.err


def test_a_path_that_nobody_takes_has_the_reason_of_each(site: ThirdPartySite) -> None:
    done = site.dba(*convert("a.txt", "nothing"))
    assert (done.code, done.out) == (3, "")
    for said in (
        "huggingface, path: got a file",
        "my-arrays, path: got a file that numpy.savez did not write",
        "no-model, path: got no .odd",
        "a_module_that_nobody_has",
        "a question too many",
    ):
        assert said in done.err
    assert not (site.root / "nothing").exists()


def test_one_that_fails_while_it_opens_is_named(site: ThirdPartySite) -> None:
    done = site.dba(*convert("model.odd", "nothing"))
    assert (done.code, done.out) == (4, "")
    assert "checkpoint_source 'no-model' of dba-no-model 0.1.0" in done.err
    assert "nothing inside" in done.err
    assert "Traceback" not in done.err
    assert not (site.root / "nothing").exists()


def test_the_list_and_the_doctor_say_which(site: ThirdPartySite) -> None:
    listed, doctor, checked = site.lines(
        ("plugins", "list"), ("plugins", "doctor"), ("plugins", "check", GOOD)
    )
    assert listed.code == 0
    assert doctor.code == 4
    assert "a_module_that_nobody_has" in doctor.out + doctor.err
    assert checked.code == 0
