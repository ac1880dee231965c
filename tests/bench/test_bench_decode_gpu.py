"""`dba bench decode --device cuda`: its arithmetic, with a clock of the test's own, on the CPU."""

from __future__ import annotations

import pytest
import torch

from dba_cli.main import main
from dba_core.cache.bytes import bytes_per_token
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.errors import UnsupportedError
from dba_core.report import SilentReporter
from dba_plugins.bench import decode_gpu
from dba_plugins.bench.decode_gpu import GpuDecodeSettings, measure_gpu_decode
from dba_plugins.bench.timing import Timing

pytestmark = pytest.mark.torch

POLICY = KVCachePolicy.parse("ksem=q4_0,kgeo=q8_0,v=q4_0")


def clock(calls, *, repeats, device):
    """A backend takes 1 ms, fp16 with 128 channels 3, narrower 2; every call is made once."""
    for call in calls.values():
        assert torch.isfinite(call()).all()
    times = {name: 3.0 if "128 wide" in name else 2.0 if "wide" in name else 1.0 for name in calls}
    return {
        name: Timing(median_ms=ms, low_ms=ms, high_ms=ms, repeats=repeats) for name, ms in times.items()
    }, ("sdpa math fp16, 128 wide",)


@pytest.fixture(autouse=True)
def _bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_gpu, "read_bandwidth", lambda device: 1e9)


def measured(**changes: object):
    small = {"heads": 4, "kv_heads": (2, 4), "v_dims": (64,), "batches": (1, 2), "lengths": (40,)}
    settings = {**small, "backends": ("streaming",), "device": "cpu", **changes}
    return measure_gpu_decode(
        GpuDecodeSettings(policy=POLICY, **settings),
        SilentReporter(),
        command="dba bench decode",
        timer=clock,
    )


def test_ratios_shares_and_bytes() -> None:
    report = measured()
    own = [row for row in report.rows if row["kind"] == "backend"]
    assert [(row["batch"], row["kv_heads"], row["null"]) for row in own] == [
        (b, g, null) for b, g in ((1, 2), (1, 4), (2, 2), (2, 4)) for null in ("no", "yes")
    ]
    for row in own:
        shape = AttentionShape(
            d_model=512,
            n_heads=4,
            n_kv_heads=row["kv_heads"],
            sem_head_dim=32,
            geo_head_dim=64,
            v_head_dim=64,
        )
        assert row["bytes"] == row["batch"] * 40 * bytes_per_token(shape, POLICY)
        assert row["share"] == pytest.approx(row["bytes"] / 1e-3 / 1e9)
        assert row["against_fp16"] == 3.0
        assert row["against_same"] == 2.0
        assert row["max_error"] < 2e-3
    floats = next(row for row in report.rows if row["name"] == "sdpa math fp16, 128 wide")
    assert floats["bytes"] == 2 * 2 * 2 * 40 * 128
    assert floats["against_fp16"] == 1.0
    assert any("could not be captured" in note for note in report.notes)
    assert any("flash-attn is not installed" in note for note in report.notes)


def test_what_the_time_does_not_allow_is_named() -> None:
    report = measured(budget_seconds=-1)
    assert not report.rows
    assert sum("the time of -1 s was up" in note for note in report.notes) == 4


def test_a_named_backend_that_cannot_is_an_error_and_others_are_noted() -> None:
    with pytest.raises(UnsupportedError, match="triton_2pass"):
        measured(backends=("triton_2pass",))
    report = measured(backends=())
    assert any("backend triton_1pass left out: device" in note for note in report.notes)
    assert all(row["kind"] != "backend" for row in report.rows)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kv-heads", "2,4"], "--kv-heads takes one number on the CPU, got 2,4"),
        (["--heads", "6", "--kv-heads", "4"], "--heads 6 is not a multiple of --kv-heads 4"),
    ],
)
def test_wrong_input(arguments, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", *arguments]) != 0
    assert text in capsys.readouterr().err
