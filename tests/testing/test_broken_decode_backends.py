"""Each broken decode backend fails the contract, in the check made for it and with the right words."""

from __future__ import annotations

import pytest
from broken_plugins import decode_backends as broken

from dba_core.testing import SUITES, check_plugin

pytestmark = pytest.mark.torch

PER_PARTITION = "Row 0 of 70 tokens equals the result with the null token counted 2 times."
INTERLEAVED = "query head h reading KV head h % G"
#: Backend, the check that must fail, what its first violation says.
CASES = [
    (broken.ReadsOneTooMany, "nothing_past_a_length", "NaN behind every row's last token"),
    (broken.IgnoresRaggedLengths, "ragged_rows", "tokens of this row and no others"),
    (broken.ForgetsNull, "null_token_once", "equals the result without the null token."),
    (broken.CountsNullPerPartition, "null_token_once", PER_PARTITION),
    (broken.InterleavesHeads, "grouped_heads", INTERLEAVED),
    (broken.IgnoresResidual, "residual_window", "reads the residual window as stored"),
    (broken.WrongInNf4, "every_format", "is in nf4"),
    (broken.MutatesQueries, "changes_nothing", "q_sem was changed in place"),
    (broken.IsRandom, "deterministic", "the same bits every time"),
    (broken.LseOfBase2, "equals_float64", "lse within 1e-05"),
    (broken.LosesBatchDtype, "output_form", "torch.float16"),
    (broken.KeepsSinksAndWindow, "no_token_is_left_out", "none of tokens 4 to 266 of 331"),
    (broken.ReadsWholeBlocks, "no_token_is_left_out", "none of tokens 320 to 330 of 331"),
    (broken.WrongPast1024, "equals_when_long", "lengths [1031, 515]"),
    (broken.IgnoresScaleOfValues, "every_format", "Only v is in q8_0: look at how its codes and scales"),
    (broken.MixesUpRows, "rows_keep_apart", "that belongs to another row of the batch"),
    (broken.ReadsAnotherRow, "rows_keep_apart", "over the tokens of another row of the batch"),
    (broken.MixesUpQueries, "rows_keep_apart", "with the query of another row of the batch"),
    (broken.SwapsHeadsOfAGroup, "grouped_heads", "with the query heads of a group in another order"),
]


def failed(plugin: object, *, only: tuple[str, ...] = ()) -> dict[str, str]:
    """The failed checks with the text of their violations."""
    report = check_plugin("decode_backend", plugin, quick=True, only=only)
    return {r.name: "\n".join(map(str, r.violations)) for r in report.results if not r.ok}


def test_the_sound_one_that_they_are_made_from_passes() -> None:
    assert failed(broken.DensePlugin(broken.Dense)) == {}


@pytest.mark.parametrize(("backend", "check", "text"), CASES, ids=[case[0].__name__ for case in CASES])
def test_fails_for_the_right_reason(backend: type[broken.Dense], check: str, text: str) -> None:
    found = failed(broken.DensePlugin(backend), only=(check,))
    assert check in found, found
    assert text in found[check], found[check]


def test_what_is_wrong_in_long_rows_only_fails_there_only() -> None:
    assert set(failed(broken.DensePlugin(broken.WrongPast1024))) == {"equals_when_long"}
    assert "null_token_once" not in failed(broken.DensePlugin(broken.KeepsSinksAndWindow))


def test_an_eviction_after_thousands_of_tokens_fails_in_the_full_run() -> None:
    plugin = broken.DensePlugin(broken.KeepsNewest3000)
    report = check_plugin("decode_backend", plugin, only=("equals_when_long",))
    assert "lengths [5003, 2049]" in str(report.violations[0])
    assert check_plugin("decode_backend", plugin, quick=True, only=("equals_when_long",)).ok


@pytest.mark.parametrize("backend", [broken.ForgetsNull, broken.CountsNullPerPartition])
def test_a_null_mistake_leaves_checks_without_null_token_alone(backend: type[broken.Dense]) -> None:
    assert not {"every_format", "residual_window", "ragged_rows", "quantization_error"} & set(
        failed(broken.DensePlugin(backend))
    )


def test_one_format_that_is_wrong_is_named_and_no_other() -> None:
    found = failed(broken.DensePlugin(broken.WrongInNf4), only=("every_format",))
    assert all(f"{fmt}: look" not in found["every_format"] for fmt in ("fp16", "q8_0", "q4_0"))


CAPABILITIES = [
    (broken.EmptyReason, "where action is empty"),
    (broken.ClaimsWhatItCannotBuild, "NotImplementedError: no grouped heads yet"),
    (broken.RaisesToSayNo, "ValueError: no null token"),
]


@pytest.mark.parametrize(("plugin", "text"), CAPABILITIES, ids=[case[0].__name__ for case in CAPABILITIES])
def test_capabilities_that_are_not_true(plugin: type[broken.DensePlugin], text: str) -> None:
    found = failed(plugin(broken.Dense), only=("capabilities",))
    assert text in found["capabilities"]


def test_a_plugin_that_declines_everything_proves_nothing() -> None:
    found = failed(broken.RefusesAll(broken.Dense))
    numeric = {check.name for check in SUITES["decode_backend"].checks} - {
        "capabilities",
        "well_formed",
        "options_round_trip",
        "metadata_without_torch",
    }
    assert set(found) == numeric
    assert "moon: got new; supported: full. Wait." in found["equals_float64"]
