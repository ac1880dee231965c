"""What plugins return is looked at where it enters the attention; what they raise gets their name."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import attrs
import pytest
import torch
from broken_plugins.decode_backends import Dense, DensePlugin

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.contracts import DecodeOutput, NoOptions, NullKV, Support
from dba_core.errors import CacheError, ConfigError, PluginError
from dba_core.registry import Registry

pytestmark = pytest.mark.torch

FP32 = "ksem=fp32,kgeo=fp32,v=fp32"
CONFIG = AttentionConfig(d_model=24, n_heads=4, n_kv_heads=2, sem_head_dim=4, geo_head_dim=4, v_head_dim=6)
X = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))


@attrs.frozen
class Given:
    """A plugin whose build() is `make`."""

    name: str
    make: object
    contract: int = 1
    summary: str = "for tests"
    options_class: type = NoOptions

    def supports(self, request, options):
        return Support.yes()

    def build(self, request, options):
        return self.make() if callable(self.make) else self.make


class Answer(torch.nn.Module):
    """Returns what `answer` makes of its inputs."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *inputs):
        return self.answer(*inputs)


class Answering(Dense):
    """A right backend whose answer `change` changes."""

    def __init__(self, change):
        self.change = change

    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        return self.change(super().decode(q_sem, q_geo, cache, null=null))


def layer(kind: str, make: object, **how) -> DecoupledAttention:
    """A layer with the plugin `odd` of acme 1.2, which builds `make`."""
    registry = Registry()
    registry.register(kind, Given("odd", make), distribution="acme", version="1.2")
    how[kind] = "odd"
    return DecoupledAttention(CONFIG, registry=registry, **how)


def decoded(attention: DecoupledAttention, steps: int = 1) -> torch.Tensor:
    cache = attention.new_cache(batch=2, capacity=16, policy=FP32)
    attention(X, cache=cache)
    return torch.cat([attention(X[:, :1], cache=cache) for _ in range(steps)], dim=1)


def changed_out(change):
    return lambda: Answering(lambda done: attrs.evolve(done, out=change(done.out)))


GATES = {
    "three": (lambda x: x.new_full((2, 4, x.shape[1], 1), 3.0), "values from 3 to 3; allowed: 0 to 1"),
    "minus": (lambda x: x.new_full((2, 4, x.shape[1], 1), -5.0), "values from -5 to -5; allowed: 0 to 1"),
    "nan": (lambda x: x.new_full((2, 4, x.shape[1], 1), torch.nan), "values from nan to nan"),
    "three dims": (lambda x: x.new_full((2, 4, x.shape[1]), 0.5), "shape [2, 4, 5]; allowed: [2, 4, 5, 1]"),
    "integers": (lambda x: torch.ones(2, 4, x.shape[1], 1, dtype=torch.int64), "gate in torch.int64"),
    "nothing": (lambda x: None, "gate that is None"),
    "elsewhere": (lambda x: torch.ones(2, 4, x.shape[1], 1, device="meta"), "gate on meta; allowed: cpu"),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gate(case: str) -> None:
    answer, text = GATES[case]
    attention = layer("gate", lambda: Answer(answer))
    for path in (lambda: attention(X), lambda: decoded(attention)):
        with pytest.raises(PluginError) as caught:
            path()
        assert str(caught.value).startswith(
            "gate 'odd' of acme 1.2 returned a gate"
            if "values" in text
            else "gate 'odd' of acme 1.2 returned gate"
        )
        assert text in str(caught.value)


def test_a_gate_is_not_blamed_for_its_input() -> None:
    attention = layer(
        "gate",
        lambda: Answer(lambda x: x.mean(-1)[:, None, :, None].expand(-1, 4, -1, -1).sigmoid()),
    )
    assert attention(X * torch.nan).isnan().all()


SUMMARIZERS = {
    "one": (lambda k, v: k.mean(3), "an object of type Tensor; allowed: a tuple of two tensors"),
    "narrow": (
        lambda k, v: (k.mean(3), v.mean(3)[..., :-1]),
        "memory values of shape [2, 2, 4, 5]; allowed: [2, 2, 4, 6]",
    ),
    "double": (
        lambda k, v: (k.mean(3).double(), v.mean(3)),
        "memory keys in torch.float64; allowed: torch.float32",
    ),
    "nan": (lambda k, v: (k.mean(3), v.mean(3) / 0), "memory values with a NaN or an infinity"),
}


@pytest.mark.parametrize("case", SUMMARIZERS)
def test_a_summarizer(case: str) -> None:
    answer, text = SUMMARIZERS[case]
    config = LongSequenceConfig(enabled=True, mem_block=4, local_window=4, q_chunk=4, threshold=8)
    attention = layer("summarizer", lambda: Answer(answer), train_long_seq=config, context=24)
    with pytest.raises(PluginError) as caught:
        attention.train()(torch.randn(2, 24, 24))
    assert "summarizer 'odd' of acme 1.2 returned" in str(caught.value)
    assert text in str(caught.value)


def null(**other: torch.Tensor) -> NullKV:
    return NullKV(**{"k_sem": torch.zeros(2, 4), "k_geo": torch.zeros(2, 4), "v": torch.zeros(2, 6), **other})


NULLS = {
    "tuple": (lambda: (torch.zeros(2, 4),) * 3, "allowed: a NullKV"),
    "per query head": (lambda: null(v=torch.zeros(4, 6)), "v of shape [4, 6]; allowed: [2, 6]"),
    "inf": (lambda: null(k_geo=torch.full((2, 4), torch.inf)), "k_geo with a NaN or an infinity"),
}


@pytest.mark.parametrize("case", NULLS)
def test_a_null_token(case: str) -> None:
    answer, text = NULLS[case]
    attention = layer("null_token", lambda: Answer(answer))
    for path in (lambda: attention(X), lambda: decoded(attention)):
        with pytest.raises(PluginError) as caught:
            path()
        assert "null_token 'odd' of acme 1.2 returned" in str(caught.value)
        assert text in str(caught.value)


BACKENDS = {
    "transposed": (changed_out(lambda out: out.mT.contiguous()), "[2, 6, 4], which is [B,Dv,H]"),
    "one row": (changed_out(lambda out: out[:1]), "out of shape [1, 4, 6]; allowed: [2, 4, 6] [B,H,Dv]"),
    "double": (changed_out(lambda out: out.double()), "out in torch.float64; allowed: torch.float32"),
    "nan": (changed_out(lambda out: out * torch.nan), "out with a NaN or an infinity from finite queries"),
    "elsewhere": (changed_out(lambda out: out.to("meta")), "out on meta; allowed: cpu"),
    "tensor": (lambda: Answering(lambda done: done.out), "type Tensor; allowed: a DecodeOutput"),
    "nothing": (lambda: Answering(lambda done: None), "returned None; allowed: a DecodeOutput"),
    "lse": (
        lambda: Answering(lambda done: DecodeOutput(out=done.out, lse=torch.zeros(2, 4, 1))),
        "lse of shape [2, 4, 1]; allowed: [2, 4] [B,H]",
    ),
}


@pytest.mark.parametrize("case", BACKENDS)
def test_a_decode_backend(case: str) -> None:
    make, text = BACKENDS[case]
    with pytest.raises(PluginError) as caught:
        decoded(layer("decode_backend", make))
    assert "decode_backend 'odd' of acme 1.2 returned" in str(caught.value)
    assert text in str(caught.value)
    given = DecoupledAttention(CONFIG, decode_backend=make())
    with pytest.raises(PluginError, match="decode_backend Answering, given as an object, returned"):
        decoded(given)


BUILT = {
    ("gate", "text"): "built 'text'; allowed: a torch.nn.Module, or None to add nothing",
    ("null_token", 3): "built 3; allowed: a torch.nn.Module, or None",
    ("summarizer", None): "built None; allowed: a torch.nn.Module. Choose",
    ("decode_backend", None): "built None; allowed: a DecodeBackend",
    ("decode_backend", "text"): "built 'text'; allowed: a DecodeBackend",
}


@pytest.mark.parametrize(("kind", "built"), BUILT, ids=str)
def test_what_is_built(kind: str, built: object) -> None:
    long = LongSequenceConfig(enabled=True, mem_block=4, local_window=4, q_chunk=4, threshold=8)
    with pytest.raises(PluginError) as caught:
        decoded(layer(kind, built, train_long_seq=long))
    assert f"{kind} 'odd' of acme 1.2 {BUILT[kind, built]}" in str(caught.value)


class Rust(BaseException):
    """As the panics of Rust extensions: no Exception."""


@pytest.mark.parametrize("raised", [ValueError("odd  size"), Rust("panicked"), AssertionError()], ids=repr)
def test_an_exception_names_the_plugin_and_stays_its_cause(raised: BaseException) -> None:
    def fail(*_):
        raise raised

    gate = layer("gate", lambda: Answer(fail))
    backend = layer("decode_backend", lambda: Answering(fail))
    for who, path in (("gate", lambda: gate(X)), ("decode_backend", lambda: decoded(backend))):
        with pytest.raises(
            PluginError, match=rf"^{who} 'odd' of acme 1\.2 failed when it was called \("
        ) as caught:
            path()
        assert caught.value.__cause__ is raised
        assert caught.value.exit_code == 4


def test_an_error_that_is_being_handled_is_not_the_plugins() -> None:
    backend = layer("decode_backend", lambda: Answering(lambda done: None))
    try:
        raise OSError("of the caller")
    except OSError:
        with pytest.raises(PluginError, match=r"^decode_backend 'odd' of acme 1\.2 returned None") as caught:
            decoded(backend)
    assert caught.value.__cause__ is None


def test_an_error_in_our_words_keeps_its_class_and_is_named_once() -> None:
    def fail(*_):
        raise CacheError("no room")

    with pytest.raises(CacheError, match=r"^gate 'odd' of acme 1\.2: no room$"):
        layer("gate", lambda: Answer(fail))(X)


def test_a_configuration_error_of_a_plugin_at_work_is_about_no_key_of_the_user() -> None:
    def fail(*_):
        raise ConfigError("too wide", path="model.d_model")

    with pytest.raises(ConfigError) as caught:
        layer("gate", lambda: Answer(fail))(X)
    assert (str(caught.value), caught.value.path) == ("gate 'odd' of acme 1.2: model.d_model: too wide", "")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("kind", ["gate", "decode_backend"])
def test_what_is_no_fault_of_a_plugin_passes(kind: str, raised: type[BaseException]) -> None:
    def fail(*_):
        raise raised

    part = Answer(fail) if kind == "gate" else Answering(fail)
    with pytest.raises(raised) as caught:
        decoded(layer(kind, lambda: part))
    assert type(caught.value) is raised


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit])
def test_a_plugin_does_not_end_the_run(raised: type[BaseException]) -> None:
    def fail(*_):
        raised_here.append(raised(0))
        raise raised_here[-1]

    raised_here: list[BaseException] = []
    parts = {"gate": lambda: Answer(fail), "decode_backend": lambda: Answering(fail)}
    for kind, part in parts.items():
        with pytest.raises(
            PluginError, match=rf"^{kind} 'odd' of acme 1\.2 .*{raised.__name__}: 0"
        ) as caught:
            decoded(layer(kind, part))
        assert caught.value.__cause__ is raised_here[-1]


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit])
def test_nor_does_a_writer(raised: type[BaseException]) -> None:
    class Leaving:
        def write(self, cache, k_sem, k_geo, v) -> bool:
            raise raised(0)

    backend = Dense()
    backend.writer = Leaving()
    with pytest.raises(PluginError, match=r"^decode_backend 'odd' of acme 1\.2 failed when it wrote"):
        decoded(layer("decode_backend", lambda: backend))


def later(good: int):
    """Right answers, and NaN after the first `good` ones."""
    calls = []

    def change(out):
        calls.append(1)
        return out if len(calls) <= good else out * torch.nan

    return change


def test_values_are_looked_at_once_and_in_strict_mode_always() -> None:
    assert decoded(layer("decode_backend", changed_out(later(1))), steps=2).isnan().any()
    attention = layer("decode_backend", changed_out(later(1)))
    assert attention.check_every_call() is False
    with pytest.raises(PluginError, match="NaN or an infinity"):
        decoded(attention, steps=2)


def test_form_is_looked_at_in_every_call() -> None:
    calls = []

    def change(out):
        calls.append(1)
        return out if len(calls) == 1 else out[:1]

    with pytest.raises(PluginError, match=r"shape \[1, 4, 6\]"):
        decoded(layer("decode_backend", changed_out(change)), steps=2)


def test_a_writer_is_named() -> None:
    class Writer:
        def write(self, cache, k_sem, k_geo, v):
            raise OSError("gone")

    backend = Dense()
    backend.writer = Writer()
    with pytest.raises(
        PluginError, match=r"'odd' of acme 1\.2 failed when it wrote to the cache \(OSError: gone\)"
    ):
        decoded(layer("decode_backend", lambda: backend))
    Writer.write = lambda *_: None
    with pytest.raises(PluginError, match="answered None when it wrote to the cache; allowed: True or False"):
        decoded(layer("decode_backend", lambda: backend))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What was compiled here, half of it where an error ended it, stays here."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_sound_plugins_pass_as_before_compiled_copied_and_with_gradients() -> None:
    def half(x):
        return torch.sigmoid(x[..., :4]).transpose(1, 2).unsqueeze(-1)

    attention = layer("gate", lambda: Answer(half))
    assert set(dict(attention.named_modules())) == {
        "", "q_sem", "k_sem", "q_geo", "k_geo", "v_proj", "out_proj", "gate",
    }  # fmt: skip
    assert not [name for name in attention.state_dict() if "entrance" in name]
    x = X.clone().requires_grad_()
    y = attention(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(copy.deepcopy(attention)(X), y)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attention, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(X), y)
    torch.testing.assert_close(compiled(X), y)
    assert len(graphs) == 1
    assert not [n for n in graphs[0].graph.nodes if "aminmax" in str(n.target) or "isfinite" in str(n.target)]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_wrong_form_is_seen_in_compiled_code_too() -> None:
    attention = layer("gate", lambda: Answer(lambda x: x.new_full((2, 1, 1, 1), 0.5)))
    with pytest.raises(PluginError, match=r"gate of shape \[2, 1, 1, 1\]; allowed: \[2, 4, 5, 1\]"):
        torch.compile(attention, backend="eager")(X)


def test_the_whole_plugin_through_the_registry() -> None:
    registry = Registry()
    registry.register("decode_backend", DensePlugin(Dense), distribution="acme", version="1")
    sound = DecoupledAttention(CONFIG, registry=registry, decode_backend="dense")
    reference = DecoupledAttention(CONFIG, decode_backend="streaming")
    reference.load_state_dict(sound.state_dict())
    torch.testing.assert_close(decoded(sound, steps=3), decoded(reference, steps=3))
