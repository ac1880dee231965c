"""Every n-th training step is exact attention where the rest takes the long-sequence path."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from tiny_run import build, events_of, run, tiny_config

from dba_core.attention import module
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.registry.choice import PluginChoice
from dba_core.training.loop import StepFinished

pytestmark = pytest.mark.torch

PATH = LongSequenceConfig(threshold=16, mem_block=2, local_window=2, q_chunk=2)


def configured(exact_every: int, *, steps: int = 7):
    config = tiny_config(steps=steps, grad_accum=1, batch_size=2, eval_every=steps)
    knobs = attrs.evolve(PATH, exact_every=exact_every)
    mean = attrs.evolve(config.plugins, summarizer=PluginChoice("mean"))
    return attrs.evolve(config, model=attrs.evolve(config.model, train_long_seq=knobs), plugins=mean)


@pytest.fixture
def steps_on_the_path(monkeypatch: pytest.MonkeyPatch):
    """How many steps finished before each call of the path by the first of the two layers."""
    finished, calls = [], []
    original = module.long_sequence_attention

    def counted(*args, **kwargs):
        calls.append(len(finished))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "long_sequence_attention", counted)

    def note(event) -> None:
        if isinstance(event, StepFinished):
            finished.append(event.step)

    return note, calls


@pytest.mark.parametrize(("every", "on_the_path"), [(0, range(7)), (3, (0, 1, 3, 4, 6)), (1, ())])
def test_which_steps_take_the_path(tmp_path: Path, steps_on_the_path, every: int, on_the_path) -> None:
    note, calls = steps_on_the_path
    run(tmp_path, configured(every), on_event=note)
    assert calls == [step for step in on_the_path for _layer in range(2)]


def test_an_exact_step_is_the_step_of_a_model_without_the_path(tmp_path: Path) -> None:
    exact = configured(0, steps=1)
    off = attrs.evolve(exact.model, train_long_seq=LongSequenceConfig(enabled=False))
    losses = [
        events_of(run(tmp_path / name, config), StepFinished)[0].loss
        for name, config in (
            ("mixed", configured(1, steps=1)),
            ("off", attrs.evolve(exact, model=off)),
            ("path", exact),
        )
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_a_resumed_run_keeps_the_turn(tmp_path: Path) -> None:
    config = configured(3)
    whole = run(tmp_path / "whole", config)

    def stop(event) -> None:
        if isinstance(event, StepFinished) and event.step == 2:
            raise KeyboardInterrupt

    run(tmp_path / "parts", config, on_event=stop)
    resumed = run(tmp_path / "parts", config, resume=True)
    losses = [event.loss for event in events_of(whole, StepFinished)]
    assert [event.loss for event in events_of(resumed, StepFinished)] == losses[2:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_layer_is_exact_within_and_as_before_afterwards() -> None:
    model = build(configured(0)).train()
    torch.manual_seed(0)
    x = torch.randn(1, 16, 16)
    layer = model.attentions[0]
    state = torch.get_rng_state()

    def attend():
        torch.set_rng_state(state)
        return layer(x)

    path = attend()
    with model.exact_in_training():
        exact = attend()
    assert not torch.allclose(path, exact)
    assert torch.equal(attend(), path)
    layer.long_sequence = None
    assert torch.equal(attend(), exact)
