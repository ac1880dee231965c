"""`dba plugins` with plugins from elsewhere: lists, names, times, deprecation, the doctor. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
from fake_site import GOOD_GATE, FakeSite, empty_site, gate_contract

ONLY_OURS = "acme:*,other:*"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, dba) -> Iterator[FakeSite]:
    """Gates `soft` of acme 1.0 and `twin` of acme and other, beside the built-ins, which are not allowed."""
    with empty_site() as made:
        made.module("acme_soft", GOOD_GATE.replace("NAME", "soft"))
        made.module("acme_twin", GOOD_GATE.replace("NAME", "twin"))
        made.distribution("acme", {"gate": {"soft": "acme_soft", "twin": "acme_twin"}})
        made.gate("twin", distribution="other", version="2.0")
        monkeypatch.setenv("DBA_PLUGINS_ALLOW", ONLY_OURS)
        yield made


def states(dba, *args: str) -> dict[str, str | None]:
    listed = json.loads(dba("plugins", "list", "--kind", "gate", "--json", *args).out)["plugins"]
    return {f"{plugin['distribution']}:{plugin['name']}": plugin["problem"] for plugin in listed}


def test_lists_are_shown_where_plugins_are_listed(dba, site: FakeSite) -> None:
    shown = states(dba, "--no-plugin", "other:*")
    assert shown == {
        "acme:soft": None,
        "acme:twin": None,
        "other:twin": "blocked by --no-plugin other:*",
        **{
            f"dba-attention:{name}": f"not in the allow list DBA_PLUGINS_ALLOW={ONLY_OURS}"
            for name in ("causal", "none", "static")
        },
    }
    assert "blocked by --no-plugin other:*" in dba("plugins", "list", "--no-plugin", "other:*").out


@pytest.mark.parametrize("command", [["list"], ["info", "soft"], ["doctor"]])
def test_a_name_in_a_list_that_is_none_is_refused_everywhere(dba, site: FakeSite, command: list[str]) -> None:
    done = dba("plugins", *command, "--no-plugin", "sotf")
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith("error: --no-plugin: unknown plugin 'sotf'. Did you mean 'soft'? Allowed: ")


@pytest.mark.parametrize("command", [["list"], ["info", "causal"], ["doctor"]])
def test_an_empty_allow_list_is_refused(dba, monkeypatch, command: list[str]) -> None:
    monkeypatch.setenv("DBA_PLUGINS_ALLOW", " , ")
    done = dba("plugins", *command)
    assert done.code == 4
    assert "error: DBA_PLUGINS_ALLOW=' , ' lists no plugin." in done.err


def test_a_name_of_two_distributions(dba, site: FakeSite) -> None:
    refused = dba("plugins", "info", "twin")
    assert refused.code == 4
    assert "acme 1.0 and other 2.0 both provide it. Write 'acme:twin' or 'other:twin'." in refused.err
    assert json.loads(dba("plugins", "info", "Other:twin", "--json").out)["version"] == "2.0"
    blocked = dba("plugins", "info", "twin", "--no-plugin", "acme:twin", "--json")
    assert json.loads(blocked.out)["distribution"] == "other"
    unknown = dba("plugins", "info", "acme:twn")
    assert unknown.code == 4
    assert "unknown plugin 'acme:twn'. Did you mean 'acme:twin'" in unknown.err


def test_a_trace_goes_to_stderr_with_the_sums_at_the_end(dba, site: FakeSite) -> None:
    done = dba("plugins", "info", "soft", "--json", "--trace-plugins")
    assert json.loads(done.out)["name"] == "soft"
    lines = done.err.splitlines()
    assert [line.partition(" ms")[0].rpartition(" ")[0] for line in lines[:2]] == [
        "trace: gate acme:soft: import",
        "trace: gate acme:soft: hook",
    ]
    assert lines[0].endswith(" ms, acme_soft (1 new modules)")
    assert lines[1].endswith(" ms, dba_gate() returned Gate")
    assert lines[2].startswith("trace: total of gate acme:soft: import 1x ")
    assert len(lines) == 3


def test_a_trace_of_nothing_says_so(dba, site: FakeSite) -> None:
    done = dba("plugins", "list", "--trace-plugins", "--json")
    assert json.loads(done.out)["problems"] == []
    assert done.err == "trace: no plugin was imported or called\n"


def test_the_doctor_finds_nothing_wrong(dba, site: FakeSite) -> None:
    done = dba("plugins", "doctor", "--json", "--no-plugin", "twin")
    assert done.code == 0
    report = json.loads(done.out)
    assert report["sound"] is True
    found = {each["subject"]: each["status"] for each in report["diagnoses"]}
    assert found["gate acme:soft"] == "ok"
    assert found["gate acme:twin"] == found["summarizer dba-attention:conv"] == "blocked"
    table = dba("plugins", "doctor", "--no-plugin", "twin").out
    assert "gate acme:soft" in table
    assert table.rstrip().endswith("Nothing is wrong.")


def test_the_doctor_exits_4_and_says_what_is_wrong(dba, site: FakeSite, monkeypatch) -> None:
    site.gate("bad", distribution="broken", source="raise RuntimeError('boom')")
    monkeypatch.setenv("DBA_PLUGINS_ALLOW", f"{ONLY_OURS},broken:*")
    done = dba("plugins", "doctor", "--json")
    assert done.code == 4
    found = {each["subject"]: each for each in json.loads(done.out)["diagnoses"]}
    assert found["gate broken:bad"]["status"] == found["gate acme:twin"]["status"] == "error"
    assert "(RuntimeError: boom)" in found["gate broken:bad"]["text"]
    assert found["gate acme:soft"]["status"] == "ok"
    table = dba("plugins", "doctor")
    assert table.code == 4
    assert f"3 of {len(found)} are wrong." in table.out


@pytest.mark.filterwarnings("default::dba_core.errors.DeprecatedContractWarning")
def test_a_plugin_of_the_previous_contract_is_warned_about_in_one_line(dba, site: FakeSite) -> None:
    said = (
        "it was written for gate contract 1, which dba 0.9 drops; this dba has contract 2: install a newer "
        "version of the plugin before you update dba"
    )
    with gate_contract(2, previous_until="0.9"):
        done = dba("plugins", "info", "soft", "--json")
        assert done.err == f"warning: gate 'soft' of acme 1.0: {said}\n"
        assert json.loads(done.out)["deprecation"] == said
        assert "it was written for gate contract 1" in dba("plugins", "info", "soft").out
    with gate_contract(2):
        assert dba("plugins", "info", "soft").code == 4


def test_the_listing_says_what_is_missing_and_imports_nothing(dba, site: FakeSite, monkeypatch) -> None:
    source = GOOD_GATE.replace("NAME", "fast").replace('"cpu"', '"cuda"')
    site.module("acme_fast", source)
    entry_points = "[dba.gates]\nfast = acme_fast\n[dba.needs]\ngate.fast = no_such_package\n"
    site.distribution("acme-fast", entry_points)
    site.gate("fine", distribution="third")
    monkeypatch.delenv("DBA_PLUGINS_ALLOW")
    listed = json.loads(dba("plugins", "list", "--kind", "gate", "--json").out)["plugins"]
    rows = {plugin["distribution"]: plugin for plugin in listed if plugin["name"] == "fast"}
    assert (rows["acme-fast"]["needs"], rows["acme-fast"]["missing"]) == (["no_such_package"],) * 2
    assert not {"acme_fast", "third_fine"} & set(sys.modules)
    assert "needs no_such_package (not installed)" in dba("plugins", "list", "--kind", "gate").out


def test_check_asks_each_plugin_whether_it_runs(dba, site: FakeSite, monkeypatch) -> None:
    monkeypatch.setenv("DBA_PLUGINS_ALLOW", "acme:soft,third:*,panics:*")
    site.gate("fine", distribution="third", source=GOOD_GATE.replace('"cpu"', '"cuda"'))
    site.gate("bad", distribution="panics", source="class P(BaseException): pass\nraise P('panicked')")
    done = dba("plugins", "list", "--kind", "gate", "--check", "--json")
    runs = {row["name"]: row["runs"]["cpu"] for row in json.loads(done.out)["plugins"]}
    assert done.code == 0
    assert runs["soft"] == "yes"
    assert runs["fine"] == "no: device: got cpu; supported: cuda. Choose --device cpu."
    assert runs["bad"].startswith(
        "no: gate 'bad' of panics 1.0 (panics_bad) cannot be used: its hook cannot be"
    )
    assert runs["twin"].startswith("no: not in the allow list")
    assert "runs on cpu" in dba("plugins", "list", "--kind", "gate", "--check").out
    refused = dba("plugins", "list", "--device", "cpu")
    assert (refused.code, refused.out) == (2, "")


def test_names_from_metadata_are_made_fit_for_the_terminal(dba, site: FakeSite, monkeypatch) -> None:
    monkeypatch.delenv("DBA_PLUGINS_ALLOW")
    metadata = "Metadata-Version: 2.1\nName: evil\x1b[31m\u202e\nVersion: 1\x07\n"
    site.distribution("evil", {"gate": {"odd": "no_such_module"}}, metadata=metadata)
    for command in ("list", "doctor"):
        out = dba("plugins", command).out
        assert "evil\\x1b[31m\\u202e" in out
        assert not {"\x1b", "\u202e", "\x07"} & set(out)


def test_a_loud_plugin_leaves_the_json_alone(dba_process, site: FakeSite) -> None:
    loud = "import os\nprint('loud')\nos.write(1, b'louder')\n" + GOOD_GATE
    site.gate("loud", distribution="loud-dist", source=loud)
    done = dba_process(
        "plugins", "doctor", "--json", PYTHONPATH=str(site.folder), DBA_PLUGINS_ALLOW="loud-dist:*"
    )
    assert {row["subject"]: row["status"] for row in json.loads(done.out)["diagnoses"]}[
        "gate loud-dist:loud"
    ] == "ok"
    assert "loud" in done.err
    assert "louder" in done.err
