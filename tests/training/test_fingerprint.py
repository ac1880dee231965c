"""The fingerprint in checkpoints that are on users' disks: the same settings keep the same one."""

from __future__ import annotations

import json

import pytest

from dba_core.config.run import RunConfig
from dba_core.model.language_model import LanguageModel
from dba_core.training.checkpoint import sha256_text
from dba_core.training.fingerprint import settings_fingerprint

pytestmark = pytest.mark.torch

#: `fingerprint_sha256` of these settings, computed while the summarizer's name was a field of two tables.
WRITTEN = "c84c2ee266b0e4baba61b9fed6bc993cb849fd6fe9181652eaef774c3e839067"
DATA = {
    "model": {
        "vocab_size": 11,
        "context": 24,
        "n_layers": 1,
        "d_model": 16,
        "attention": {
            "n_heads": 2,
            "n_kv_heads": 2,
            "sem_head_dim": 4,
            "geo_head_dim": 4,
            "v_head_dim": 4,
        },
        "train_long_seq": {"threshold": 16, "mem_block": 4, "local_window": 4, "q_chunk": 2},
    },
    "plugins": {"summarizer": "conv", "gate": "static", "null_token": "learned"},
}


def as_written_before() -> dict[str, object]:
    """The settings as an older `resolved_config.json` has them, the name in both places."""
    data = RunConfig.from_dict(DATA).to_dict()
    data["model"]["train_long_seq"]["mem_summarizer"] = "conv"
    return data


@pytest.mark.parametrize("data", [DATA, as_written_before()], ids=["now", "before"])
def test_a_fingerprint_is_what_it_was_when_the_summarizer_stood_in_two_places(data) -> None:
    config = RunConfig.from_dict(data)
    model = LanguageModel(config.model, plugins=config.plugins, shapes_only=True)
    found = settings_fingerprint(config, settings=model.config, attentions=model.attentions, device="cpu")
    assert found["model"]["train_long_seq"]["mem_summarizer"] is None
    assert found["plugins"]["summarizer"]["name"] == "conv"
    assert sha256_text(json.dumps(found, sort_keys=True)) == WRITTEN
