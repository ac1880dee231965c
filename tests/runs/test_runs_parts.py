"""Parts of a run on their own: gate means, the null token's word, the reporter, the model's choices."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch

from dba_cli.output.progress import TerminalReporter
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices, PluginRecord
from dba_core.runs.evaluate import FUSED, INACTIVE, UNFUSED, null_attention
from dba_core.runs.pages import human_count
from dba_core.runs.plots import gate_means
from dba_core.runs.prepare import model_choices
from dba_core.runs.summary import far_from_exact
from dba_core.training.loop import Evaluated, StepFinished, TrainingStarted

pytestmark = pytest.mark.torch


def small(mode: str) -> LanguageModel:
    attention = AttentionConfig(mode=mode, n_heads=2)
    return LanguageModel(ModelConfig(vocab_size=20, context=8, n_layers=2, d_model=32, attention=attention))


def test_gate_means_are_those_of_the_gates() -> None:
    model = small("decoupled")
    wanted = torch.tensor([[0.1, 0.5], [0.7, 0.95]])
    with torch.no_grad():
        for attention, share in zip(model.attentions, wanted, strict=True):
            attention.gate.decoupled_gate_logit.copy_(share.logit())
    tokens = torch.arange(43).remainder(20).numpy()
    means = gate_means(model, tokens, context=8, limit_tokens=40, batch_size=2)
    torch.testing.assert_close(torch.tensor(means), wanted, rtol=1e-6, atol=1e-6)
    assert not any(attention.gate._forward_hooks for attention in model.attentions)


def test_gate_means_are_an_average_over_every_token() -> None:
    model = small("decoupled")
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        for attention in model.attentions:
            attention.gate.decoupled_gate_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(30).remainder(20).numpy()
    means = gate_means(model, tokens, context=8, limit_tokens=29, batch_size=2)
    hook = model.attentions[0].gate.register_forward_hook(lambda module, inputs, gate: seen.append(gate))
    for start in (0, 8, 16, 24):
        model.eval()(torch.tensor(tokens[start : min(start + 8, 29)].tolist())[None])
    hook.remove()
    gates = torch.cat(seen, dim=2)[0, :, :, 0]  # [H, tokens]
    assert gates.shape[1] == 29
    torch.testing.assert_close(torch.tensor(means[0]), gates.mean(1), rtol=1e-5, atol=1e-6)


def test_a_model_without_gates_has_no_means() -> None:
    assert (
        gate_means(small("standard"), torch.arange(20).numpy(), context=8, limit_tokens=9, batch_size=2)
        is None
    )


@pytest.mark.parametrize(
    ("null_token", "fused", "word"),
    [
        (None, True, INACTIVE),
        (None, False, INACTIVE),
        ("a null token", False, UNFUSED),
        ("a null token", True, FUSED),
    ],
)
def test_null_attention_says_what_runs(null_token, fused: bool, word: str) -> None:
    decode = SimpleNamespace(build=lambda: SimpleNamespace(fused_null=fused))
    layer = SimpleNamespace(null_token=null_token, selection_without_cache=lambda *_, **__: decode)
    model = SimpleNamespace(attentions=[layer], config=SimpleNamespace(context=8))
    assert null_attention(model, KVCachePolicy.uniform("fp16"), device="cpu") == word


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"how": "auto", "why": "auto: first"}, "auto"),
        ({"how": "named", "why": "chosen by name"}, "streaming"),
        ({"how": "recorded", "why": "as recorded (chosen by name)"}, "streaming"),
        ({"how": "named", "why": "auto, says a text that decides nothing"}, "streaming"),
        ({"why": "auto: first"}, "auto"),
        ({"why": "as recorded (auto: first)"}, "auto"),
        ({"why": "chosen by name"}, "streaming"),
        (None, "streaming"),
    ],
)
def test_a_backend_that_auto_chose_stays_automatic(record: dict[str, str] | None, name: str) -> None:
    rest = {"distribution": "dba", "version": "1", "contract": 1}
    kept = None if record is None else PluginRecord.from_dict({**rest, **record})
    choices = PluginChoices(
        decode_backend=PluginChoice("streaming", record=kept), gate=PluginChoice("static")
    )
    assert model_choices(choices).decode_backend.name == name
    assert model_choices(choices).gate == choices.gate


def train_through(reporter: TerminalReporter) -> None:
    with reporter:
        reporter.phase("Training x ...")
        reporter.event(TrainingStarted(first_step=2, steps=9, world_size=1))
        for step in (3, 4):
            reporter.event(
                StepFinished(
                    step=step,
                    steps=9,
                    loss=2.5,
                    lr=1e-3,
                    grad_norm=1.0,
                    tokens=640,
                    tokens_per_second=12345.6,
                    seconds=1.0,
                    remaining_seconds=5.0,
                )
            )
            evaluated = Evaluated(
                step=step, loss=2.25, perplexity=9.5, tokens=100, seconds=0.1, is_best=step == 3
            )
            reporter.event(evaluated)
        reporter.warning("careful")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    def call(*, terminal: bool, quiet: bool = False) -> str:
        """What is said on stderr. FORCE_COLOR makes it a terminal for rich."""
        environment = {
            "TERM": "xterm",
            "COLUMNS": "140",
            "NO_COLOR": "1",
            "FORCE_COLOR": "1" if terminal else "",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with contextlib.redirect_stderr(io.StringIO()) as file:
            train_through(TerminalReporter(quiet=quiet))
        return file.getvalue()

    return call


def test_on_a_terminal_a_bar_with_loss_speed_and_time(told) -> None:
    text = told(terminal=True)
    assert "step 4/9" in text
    assert "loss 2.500" in text
    assert "held-out 2.250" in text
    assert "12,346 tokens/s" in text
    assert "0:00:05 left" in text


def test_elsewhere_plain_lines(told) -> None:
    assert told(terminal=False) == (
        "Training x ...\nstep 3: loss 2.2500 over the first 100 held-out tokens (lowest so far)\n"
        "step 4: loss 2.2500 over the first 100 held-out tokens\n"
        "warning: careful\n"
    )


def test_quiet_keeps_the_warnings(told) -> None:
    assert told(terminal=False, quiet=True) == "warning: careful\n"
    assert told(terminal=True, quiet=True) == "warning: careful\n"


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1234567, "1.23M"), (999_999, "1M"), (2.5e12, "2.5T")])
def test_human_count(count: float, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("exact", "as_trained", "warned"), [(3.1, 2.1, True), (2.15, 2.1, False), (2.0, None, False)]
)
def test_weights_that_exact_attention_reads_worse_are_warned_about(exact, as_trained, warned) -> None:
    losses = {"held_out": exact, "held_out_as_trained": as_trained}
    (*warnings,) = far_from_exact(losses)
    assert len(warnings) == warned
    if warned:
        assert "loses 1.00 nats per token more than the long-sequence path" in warnings[0]
