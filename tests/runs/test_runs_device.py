"""Device names: what was meant, and what this torch was built with."""

from __future__ import annotations

import pytest
import torch

from dba_core.errors import ConfigError
from dba_core.runs.prepare import resolve_device

pytestmark = pytest.mark.torch


def test_without_cuda_the_build_of_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError) as caught:
        resolve_device("cuda")
    assert f"this torch ({torch.__version__}) was built without CUDA" in str(caught.value)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ConfigError, match=r"built for CUDA 12\.8 and finds no GPU"):
        resolve_device("cuda:0")


def test_a_number_that_is_not_there_is_answered_with_how_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match=r"'cuda:2' is not there.* finds 2 GPU"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda0", "CPU", "mps", "", "0"])
def test_a_wrong_name_is_no_error_of_torch(name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)allowed: auto, cpu"):
        resolve_device(name)


def test_options_are_checked_before_the_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from dba_core.config.run import RunConfig
    from dba_core.registry import Registry
    from dba_core.registry.choice import PluginChoice, PluginChoices
    from dba_core.runs import prepare

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr(prepare, "load_corpus", refuse)
    for options in ({"foo": 1}, {"init": "big"}):
        plugins = PluginChoices(gate=PluginChoice("causal", options=options))
        with pytest.raises(ConfigError, match=r"plugins\.gate\.options"):
            prepare.prepare(RunConfig(plugins=plugins), Registry.default(), device="cpu")
