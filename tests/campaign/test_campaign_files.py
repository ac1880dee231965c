"""A small, fixed part of the campaign of damaged files; `python tests/campaign` runs any number of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign_files import Outcome, damage_file, damaged_files
from campaign_inputs import INPUTS

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.needs("gguf")]


def test_no_damaged_file_ends_in_an_exception_or_in_a_number_that_is_none(tmp_path: Path) -> None:
    cases = damaged_files(tmp_path, count=20 * len(INPUTS))
    bad = [case for case in cases if case.outcome not in (Outcome.REFUSED, Outcome.READ)]
    assert not bad, "\n".join(map(str, bad))
    refused = sum(case.outcome is Outcome.REFUSED for case in cases)
    assert refused > len(cases) // 2, "the damage is real"


@pytest.mark.parametrize("name", ["a.json", "b.safetensors", "c.jsonl"])
def test_damage_changes_the_file(name: str, tmp_path: Path) -> None:
    path, text = tmp_path / name, '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n'
    changed = 0
    for seed in range(40):
        path.write_text(text)
        damage_file(path, random.Random(seed))
        changed += path.read_bytes() != text.encode()
    assert changed > 30
