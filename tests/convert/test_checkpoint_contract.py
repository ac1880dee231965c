"""Checkpoint sources keep their contract, and the suite finds what breaks it; which one opens a path."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fake_site import FakeSite, empty_site

from dba_cli.main import main
from dba_cli.scaffold.package import PluginPackage
from dba_core.contracts import EXAMPLE, OpenedSource, SourceRequest, StoredWeight, Support, example_weights
from dba_core.errors import CheckpointError, PluginError, SourceError
from dba_core.model.pretrained import open_pretrained
from dba_core.registry import Access, Registry
from dba_core.testing import CheckpointSourceContract, check_plugin
from dba_plugins.checkpoints.huggingface.plugin import HuggingFaceSource
from dba_plugins.checkpoints.origin.plugin import OriginSource

pytestmark = pytest.mark.torch


class TestHuggingFace(CheckpointSourceContract):
    plugin = "huggingface"


@pytest.mark.needs("gguf")
class TestGguf(CheckpointSourceContract):
    plugin = "gguf"


class TestOrigin(CheckpointSourceContract):
    plugin = "origin"


def test_a_new_source_keeps_it_as_written(tmp_path: Path) -> None:
    package = PluginPackage(kind="checkpoint_source", name="mine")
    spec = importlib.util.spec_from_loader(package.module, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(package.files()[f"{package.module}.py"], module.__dict__)
    report = check_plugin("checkpoint_source", module.dba_checkpoint_source())
    assert report.ok, report.violations


class Changed(HuggingFaceSource):
    """A source whose answer is changed after it was made."""

    def build(self, request: SourceRequest, options: Any) -> OpenedSource:
        return self.change(super().build(request, options), request.path)

    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return opened


def with_weight(opened: OpenedSource, **change: Any) -> OpenedSource:
    """The final norm says or reads something else."""
    weights = dict(opened.weights)
    weights["ln_f.weight"] = attrs.evolve(weights["ln_f.weight"], **change)
    return attrs.evolve(opened, weights=weights)


class TakesAll(Changed):
    def supports(self, request: SourceRequest, options: Any) -> Support:
        return Support.yes()


class NoExample(Changed):
    def example(self, folder: Path) -> Path:
        return folder / "nothing"


class LacksAWeight(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        rest = {name: weight for name, weight in opened.weights.items() if name != "ln_f.weight"}
        return attrs.evolve(opened, weights=rest)


class AnotherShape(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return with_weight(opened, read=lambda: torch.ones(7))


class Infinite(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return with_weight(opened, read=lambda: torch.full((EXAMPLE.d_model,), torch.inf))


class InHalf(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return with_weight(opened, read=lambda: torch.ones(EXAMPLE.d_model, dtype=torch.float16))


class Draws(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return with_weight(opened, read=lambda: torch.rand(EXAMPLE.d_model))


class WrongWidths(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return attrs.evolve(opened, description=attrs.evolve(opened.description, n_kv_heads=3))


class NoFiles(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return attrs.evolve(opened, files=())


class NoDocument(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        return attrs.evolve(opened, tokenizer_json="no JSON", tokenizer_config={"a": Path("b")})


class RaisesItsOwn(HuggingFaceSource):
    """What the package below raises is let through."""

    def build(self, request: SourceRequest, options: Any) -> OpenedSource:
        try:
            return super().build(request, options)
        except CheckpointError as error:
            raise RuntimeError("bad file") from error


class BelievesItsFile(OriginSource):
    """Opens whatever is there."""

    def build(self, request: SourceRequest, options: Any) -> OpenedSource:
        weights = {
            name: StoredWeight(
                name=name, where="memory", shape=tuple(each.shape), read=functools.partial(each.clone)
            )
            for name, each in example_weights().items()
        }
        return OpenedSource(name="a", family="b", description=EXAMPLE, weights=weights, files=("a",))


class Writes(Changed):
    def change(self, opened: OpenedSource, path: Path) -> OpenedSource:
        (path / "cache.bin").write_bytes(b"1")
        return opened


@pytest.mark.parametrize(
    ("plugin", "check", "said"),
    [
        (TakesAll, "recognizes", "supports() takes it"),
        (NoExample, "recognizes", "example(folder)"),
        (LacksAWeight, "describes_a_model", "ln_f.weight is missing"),
        (WrongWidths, "describes_a_model", "n_kv_heads"),
        (NoFiles, "describes_a_model", "the files that were read"),
        (NoDocument, "describes_a_model", "tokenizer_config"),
        (AnotherShape, "weights_on_demand", "has shape (7,) and not (32,)"),
        (Infinite, "weights_on_demand", "not finite"),
        (InHalf, "weights_on_demand", "torch.float16"),
        (Draws, "weights_on_demand", "ln_f.weight, read twice"),
        (RaisesItsOwn, "damage_is_said", "bad file"),
        (BelievesItsFile, "damage_is_said", "model.pt cut off"),
        (Writes, "writes_nothing", "model/cache.bin"),
    ],
)
def test_the_suite_finds_a_broken_source(plugin: type[Any], check: str, said: str) -> None:
    report = check_plugin("checkpoint_source", plugin(), only=(check,))
    assert any(said in str(violation) for violation in report.violations), report.violations


SOURCE = """
    from pathlib import Path
    from dba_core import hookimpl
    from dba_core.contracts import NoOptions, OpenedSource, Reason, Support

    class Toy:
        name, contract, summary, options_class = "{name}", 1, "a toy", NoOptions

        def supports(self, request, options):
            if request.path.suffix == ".toy":
                return Support.yes()
            return Support.no(Reason(subject="path", got="no toy", supported=".toy", action="Build one."))

        def build(self, request, options):
            {build}

        def example(self, folder):
            return folder

    @hookimpl
    def dba_checkpoint_source():
        return Toy()
"""


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with empty_site() as made:
        yield made


def add(site: FakeSite, name: str, build: str, *, text: str = SOURCE) -> None:
    site.module(f"source_{name}", text.format(name=name, build=build) if text is SOURCE else text)
    site.distribution(f"dist-{name}", {"dba.checkpoint_sources": {name: f"source_{name}"}})


def test_a_path_that_no_source_recognizes_is_an_error_with_the_reason_of_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no model")
    with pytest.raises(SourceError) as caught:
        open_pretrained(tmp_path / "a.txt")
    text = str(caught.value)
    assert f"{tmp_path / 'a.txt'} is no model that can be opened; give the folder of a Hugging Face" in text
    for reason in (
        "huggingface, path: got a file;",
        "gguf, path: got a file that",
        "origin, path: got a file",
    ):
        assert reason in text
    assert [reason.subject for reason in caught.value.reasons] == [
        "huggingface, path",
        "gguf, path",
        "origin, path",
    ]
    assert caught.value.exit_code == 3


def test_a_foreign_source_is_asked_after_ours_without_being_listed_anywhere(
    site: FakeSite, tmp_path: Path
) -> None:
    add(site, "lists", "raise AssertionError('asked')")
    (tmp_path / "a.toy").write_bytes(b"toy")
    registry = site.registry()
    assert registry.auto_order("checkpoint_source", device="cpu") == (("lists", "dist-lists"),)
    with pytest.raises(
        PluginError, match=r"checkpoint_source 'lists' of dist-lists 1\.0 .*AssertionError: asked"
    ):
        open_pretrained(tmp_path / "a.toy", registry=registry)


def test_a_broken_source_is_named_and_only_where_no_other_takes_the_path(
    site: FakeSite, tmp_path: Path
) -> None:
    add(site, "broken", "", text="import a_module_that_nobody_has\n")
    add(site, "nothing", "return None")
    (tmp_path / "a.toy").write_bytes(b"toy")
    (tmp_path / "b.txt").write_bytes(b"text")
    registry = site.registry()
    with pytest.raises(PluginError, match=r"'nothing' of dist-nothing .* built None, no OpenedSource"):
        open_pretrained(tmp_path / "a.toy", registry=registry)
    with pytest.raises(SourceError, match=r"broken: got a problem(.|\n)*a_module_that_nobody_has"):
        open_pretrained(tmp_path / "b.txt", registry=registry)


def test_what_a_source_says_against_the_file_has_no_name_before_it(site: FakeSite, tmp_path: Path) -> None:
    add(
        site,
        "honest",
        "from dba_core.errors import CheckpointError; raise CheckpointError('a.toy is cut off')",
    )
    (tmp_path / "a.toy").write_bytes(b"toy")
    with pytest.raises(CheckpointError, match=r"^a\.toy is cut off$"):
        open_pretrained(tmp_path / "a.toy", registry=site.registry())


def test_a_source_can_be_blocked(tmp_path: Path) -> None:
    path = HuggingFaceSource().example(tmp_path)
    assert open_pretrained(path).selection.name == "huggingface"
    registry = Registry(access=Access(blocked=("huggingface",)))
    with pytest.raises(SourceError, match=r"huggingface: got blocked(.|\n)*origin, path: got a folder"):
        open_pretrained(path, registry=registry)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("nosuch", "there is no file or folder nosuch; give the folder"),
        ("https://huggingface.co/some/model", "downloads nothing"),
        ("some-org/Some-Model-1B", "--local-dir Some-Model-1B"),
    ],
)
def test_a_path_that_is_not_there(
    model: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="give") as caught:
        open_pretrained(model)
    assert told in str(caught.value)
    assert main(["convert", model, "--out", "out", "--keep"]) == 3
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_model_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(b"no archive")
    assert main(["convert", str(tmp_path / "a.pt"), "--out", str(tmp_path / "out"), "--keep"]) == 3
    assert f"error: {tmp_path / 'a.pt'} cannot be read as a checkpoint" in capsys.readouterr().err
