"""A small, fixed part of the campaign of kills, signals, shared folders and full disks."""

from __future__ import annotations

import sys
from pathlib import Path

import campaign_processes as campaign
import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, POSIX signals, a tmpfs"),
]


def test_a_killed_run_goes_on_to_the_numbers_of_one_that_was_not(tmp_path: Path) -> None:
    assert campaign.kills(tmp_path, count=2).bad == ()


def test_a_run_that_is_told_to_stop_saves(tmp_path: Path) -> None:
    assert campaign.signals(tmp_path, count=3).bad == ()


def test_one_of_two_processes_has_the_folder(tmp_path: Path) -> None:
    assert campaign.two_processes(tmp_path, count=2).bad == ()


@pytest.mark.skipif(not campaign.can_mount(), reason="no tmpfs can be mounted here")
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    assert campaign.full_disk(tmp_path, sizes_kib=(16, 120)).bad == ()
