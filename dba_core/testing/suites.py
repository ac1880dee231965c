"""The suite of each kind, imported when it is asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping

from dba_core.contracts import Kind
from dba_core.kinds import KINDS
from dba_core.testing.check import Suite
from dba_core.testing.common import common_checks


class _Suites(Mapping[Kind, Suite]):
    """By kind, in the order of the table of kinds."""

    def __getitem__(self, kind: Kind) -> Suite:
        return _suite(KINDS[kind].suite)

    def __iter__(self) -> Iterator[Kind]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


@functools.cache
def _suite(reference: str) -> Suite:
    module, _, name = reference.partition(":")
    suite: Suite = getattr(importlib.import_module(module), name)
    common_checks(suite)
    return suite


SUITES: Mapping[Kind, Suite] = _Suites()
