"""The measurement of step times: an honest plain GPT, turns in every round, the numbers of the rows."""

from __future__ import annotations

import attrs
import pytest
import torch
from tiny_run import tiny_config, without_dropout

from dba_core.config.model import ModelConfig
from dba_core.errors import ConfigError
from dba_core.model.language_model import LanguageModel
from dba_core.training.distributed import World
from dba_plugins.bench import train as step_time
from dba_plugins.bench.plain_gpt import PlainGPT
from dba_plugins.bench.timing import WARMUP_ROUNDS
from dba_plugins.bench.train import PLAIN, measure_step_times

pytestmark = pytest.mark.torch


CONFIG = tiny_config()


def oracle_loss(config: ModelConfig, gpt: PlainGPT, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    """The same from the equations, in float64, with a dense mask."""
    w = {name: tensor.detach().double() for name, tensor in gpt.state_dict().items()}
    length, n_heads, width = tokens.shape[1], config.attention.n_heads, config.d_model

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]

    x = w["tok_emb.weight"][tokens] + w["pos_emb.weight"][:length]
    future = torch.ones(length, length).triu(1).bool()
    for layer in range(config.n_layers):
        at = f"blocks.{layer}"
        q, k, v = (norm(x, f"{at}.ln1") @ w[f"{at}.attn.qkv.weight"].T).split(width, dim=-1)
        heads = []
        for head in range(n_heads):
            part = slice(head * width // n_heads, (head + 1) * width // n_heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (width // n_heads) ** 0.5
            heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w[f"{at}.attn.out.weight"].T
        hidden = norm(x, f"{at}.ln2")
        gate, up = (hidden @ w[f"{at}.mlp.{name}.weight"].T for name in ("w_gate", "w_up"))
        x = x + (gate * gate.sigmoid() * up) @ w[f"{at}.mlp.w_down.weight"].T
    logs = (norm(x, "ln_f") @ w["tok_emb.weight"].T).log_softmax(-1)
    return -logs.gather(-1, targets[..., None]).mean().item()


def test_the_plain_gpt_is_a_gpt() -> None:
    config = without_dropout(CONFIG).model.resolved()
    gpt = PlainGPT(config, seed=1)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    both = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(3))
    loss = gpt.loss(both[:, :-1], both[:, 1:])
    assert loss.item() == pytest.approx(oracle_loss(config, gpt, both[:, :-1], both[:, 1:]), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in gpt.parameters())


def test_the_plain_gpt_needs_whole_heads() -> None:
    odd = attrs.evolve(CONFIG.model, attention=attrs.evolve(CONFIG.model.attention, n_heads=3, n_kv_heads=3))
    with pytest.raises(ConfigError, match="d_model=16 is not a multiple of n_heads=3"):
        PlainGPT(odd)


def test_rows_say_what_was_measured() -> None:
    rows = measure_step_times(CONFIG, modes=("standard", "decoupled"), repeats=3)
    assert [row.name for row in rows] == [PLAIN, "standard", "decoupled"]
    assert rows[0].ratio == 1.0
    assert all(0 < row.timing.low_ms <= row.timing.median_ms <= row.timing.high_ms for row in rows)
    assert all(row.ratio == pytest.approx(row.timing.median_ms / rows[0].timing.median_ms) for row in rows)
    assert {row.timing.repeats for row in rows} == {3}
    attention, feed_forward = 4 * 16 * 16, 3 * 16 * 24
    plain = 256 * 16 + 16 * 16 + 2 * (attention + feed_forward + 2 * 16) + 16
    assert rows[0].parameters == plain
    assert rows[1].parameters == plain - 16 * 16  # no learned positions


def test_models_take_turns_and_the_warmup_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def record(name: str):
        return lambda *_: lambda tokens, targets: turns.append(name)

    monkeypatch.setattr(step_time, "_plain_step", record("plain"))
    monkeypatch.setattr(step_time, "_library_step", record("library"))
    rows = measure_step_times(CONFIG, modes=("standard",), repeats=4)
    assert turns == ["plain", "library"] * (WARMUP_ROUNDS + 4)
    assert [row.timing.repeats for row in rows] == [4, 4]


def test_a_step_of_either_kind_changes_the_weights() -> None:
    """A step that does nothing would be fast."""
    config = without_dropout(CONFIG)
    device = torch.device("cpu")
    tokens = torch.randint(256, (config.training.batch_size, config.model.context + 1))
    plain = PlainGPT(config.model.resolved(), seed=1)
    library = LanguageModel(config.model.resolved(), seed=1)
    steps = {
        plain: step_time._plain_step(plain, config, device),
        library: step_time._library_step(library, config, World(0, 1, device)),
    }
    for model, step in steps.items():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        step(tokens[:, :-1], tokens[:, 1:])
        after = model.state_dict()
        assert not torch.equal(before["tok_emb.weight"], after["tok_emb.weight"])
        assert not torch.equal(before["ln_f.weight"], after["ln_f.weight"])


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(ConfigError, match="repeats=1 gives no median"):
        measure_step_times(CONFIG, repeats=1)
