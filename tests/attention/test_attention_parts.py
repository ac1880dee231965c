"""The plugin-made parts: each is built on a random stream of its own."""

from __future__ import annotations

import attrs
import pytest
import torch

from dba_core import AttentionConfig, DecoupledAttention, LongSequenceConfig
from dba_core.attention.entrance import Part
from dba_core.contracts import AttentionShape, GateRequest, NoOptions, Support
from dba_core.errors import PluginError
from dba_core.registry import Registry
from dba_plugins.summarizers.mean import MeanSummarizerPlugin

pytestmark = pytest.mark.torch


SHAPE = AttentionShape(d_model=8, n_heads=2, n_kv_heads=2, sem_head_dim=2, geo_head_dim=2, v_head_dim=2)


@attrs.frozen
class Drawing:
    """A gate that draws `count` random numbers when it is built."""

    name: str
    count: int
    contract: int = 1
    summary: str = "draws"
    options_class: type = NoOptions

    def supports(self, request: GateRequest, options: NoOptions) -> Support:
        return Support.yes()

    def build(self, request: GateRequest, options: NoOptions) -> torch.nn.Module:
        gate = torch.nn.Module()
        gate.weight = torch.nn.Parameter(torch.randn(self.count))
        return gate


def test_what_one_part_draws_changes_nothing_for_the_next_one() -> None:
    registry = Registry(distributions=())
    for name, count in (("few", 3), ("many", 1000)):
        registry.register("gate", Drawing(name, count))

    def second(first: str) -> torch.Tensor:
        torch.manual_seed(0)
        Part.built("gate", first, GateRequest(shape=SHAPE), registry)
        return Part.built("gate", "few", GateRequest(shape=SHAPE), registry).module.weight.detach()

    assert torch.equal(second("few"), second("many"))
    torch.manual_seed(0)
    first = Part.built("gate", "few", GateRequest(shape=SHAPE), registry).module.weight.detach()
    assert not torch.equal(first, second("few"))  # two parts of one model do not get the same numbers


def test_a_layer_asks_its_own_registry_whatever_it_is_asked_for_later() -> None:
    class Own(MeanSummarizerPlugin):
        name = "own-mean"

    registry = Registry()
    registry.register("summarizer", Own())
    config = AttentionConfig(d_model=8, n_heads=2, sem_head_dim=2, geo_head_dim=2, v_head_dim=4)
    knobs = LongSequenceConfig(mem_block=2, local_window=2, q_chunk=2)
    layer = DecoupledAttention(config, registry=registry)
    with layer.long_sequence_at_evaluation(knobs, summarizer="own-mean") as path:
        assert path.name == "own-mean"
    with (
        pytest.raises(PluginError, match="unknown summarizer 'own-mean'"),
        DecoupledAttention(config).long_sequence_at_evaluation(knobs, summarizer="own-mean"),
    ):
        pass
