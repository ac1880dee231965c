"""What all tests share: one thread and a fixed seed, so that a result does not depend on the machine's cores
or on the tests before it; one hypothesis profile, without a deadline (a first torch example is slow).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported

import pytest
from hypothesis import settings

settings.register_profile("dba", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("dba")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """torch's generator starts at 0 in every test that uses torch."""
    if request.node.get_closest_marker("torch"):
        import torch

        torch.manual_seed(0)
