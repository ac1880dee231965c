"""Fixtures of the registry tests: a fake site and requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_site import FakeSite, RequestOn, empty_site, gate_request


@pytest.fixture
def site() -> Iterator[FakeSite]:
    """An empty fake site."""
    with empty_site() as made:
        yield made


@pytest.fixture
def request_on() -> RequestOn:
    """A gate request for a device."""
    return gate_request
