"""Choosing: by name that one or an error, by `auto` the first that supports the request, with reasons."""

from __future__ import annotations

import sys

import pytest
from fake_site import GOOD_GATE, FakeSite, RequestOn

from dba_core.config import PluginChoice, PluginRecord
from dba_core.errors import ConfigError, PluginError, UnsupportedError

CUDA_GATE = GOOD_GATE.replace('== "cpu"', '== "cuda"').replace('supported="cpu"', 'supported="cuda"')


def order(site: FakeSite, distribution: str, source: str) -> None:
    """A distribution with nothing but an auto order."""
    module = f"{distribution.replace('-', '_')}_order"
    site.module(module, source)
    site.distribution(distribution, {"dba.auto_order": {"order": f"{module}:ORDER"}})


class TestByName:
    def test_the_chosen_one(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("one", distribution="d-one", version="3.1")
        request = request_on()
        selection = site.registry().select("gate", "one", request)
        assert (selection.kind, selection.name, selection.why) == ("gate", "one", "chosen by name")
        assert selection.request is request
        assert selection.passed_over == ()
        assert selection.build() == "one 0.5 cpu"

    def test_its_record(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("one", distribution="d-one", version="3.1")
        choice = PluginChoice("one", options={"bias": 1, "taps": [1, 2]})
        selection = site.registry().select("gate", choice, request_on())
        assert selection.build() == "one 1.0 cpu"
        assert selection.choice() == PluginChoice(
            "one",
            options={"bias": 1.0, "taps": [1, 2], "label": None},
            record=PluginRecord(
                distribution="d-one", version="3.1", contract=1, how="named", why="chosen by name"
            ),
        )

    def test_a_recorded_choice_is_chosen_as_recorded(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("twin", distribution="left")
        site.gate("twin", distribution="right")
        registry = site.registry()
        first = registry.select("gate", "right:twin", request_on()).choice()
        again = registry.select("gate", first, request_on())
        assert (first.name, again.info.distribution) == ("twin", "right")
        assert again.why == "as recorded (chosen by name)"
        assert registry.select("gate", again.choice(), request_on()).choice() == again.choice()

    def test_not_supported_is_an_error_with_the_reasons(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("one", distribution="d-one")
        with pytest.raises(UnsupportedError) as caught:
            site.registry().select("gate", "one", request_on("cuda"))
        (reason,) = caught.value.reasons
        assert (reason.subject, reason.got, reason.supported) == ("device", "cuda", "cpu")
        assert "device: got cuda; supported: cpu. Choose --device cpu." in str(caught.value)

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            ("return 1 / 0", "gate 'one' of d-one 1.0 is broken: its supports() raised ZeroDivisionError"),
            ("return True", "gate 'one' of d-one 1.0 is broken: its supports() returned True, no Support"),
        ],
    )
    def test_a_broken_answer(self, site: FakeSite, request_on: RequestOn, body: str, problem: str) -> None:
        source = GOOD_GATE.replace("return Support.yes()", body)
        site.gate("one", distribution="d-one", source=source)
        with pytest.raises(PluginError) as caught:
            site.registry().select("gate", "one", request_on())
        assert problem in str(caught.value)

    def test_a_build_that_fails(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate(
            "one", distribution="d-one", source=GOOD_GATE.replace('return f"', 'raise OSError("disk") #')
        )
        with pytest.raises(
            PluginError, match=r"gate 'one' of d-one 1.0 .* failed to build \(OSError: disk\)"
        ):
            site.registry().select("gate", "one", request_on()).build()

    def test_a_build_that_refuses_in_our_words(self, site: FakeSite, request_on: RequestOn) -> None:
        source = "from dba_core.errors import ConfigError\n" + GOOD_GATE.replace(
            'return f"', 'raise ConfigError("too wide", path="bias") #'
        )
        site.gate("one", distribution="d-one", source=source)
        with pytest.raises(ConfigError, match=r"^bias: gate 'one' of d-one 1\.0: too wide$"):
            site.registry().select("gate", "one", request_on()).build()

    def test_unknown_kind(self, site: FakeSite, request_on: RequestOn) -> None:
        for name in ("one", "auto"):
            with pytest.raises(PluginError, match="unknown plugin kind 'gats'"):
                site.registry().select("gats", name, request_on())


class TestAuto:
    def test_the_first_that_supports_the_request(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("fast", distribution="d-fast", source=CUDA_GATE)
        site.gate("slow", distribution="d-slow")
        site.gate("unused", distribution="d-unused")
        order(site, "dba-attention", "ORDER = {'gate': ('fast', 'slow', 'unused')}")
        registry = site.registry()
        on_cpu = registry.select("gate", "auto", request_on("cpu"))
        assert on_cpu.name == "slow"
        assert on_cpu.why == "auto: first that supports the request, after fast"
        (passed,) = on_cpu.passed_over
        assert (passed.name, passed.problem) == ("fast", None)
        assert passed.reasons[0].got == "cpu"
        assert "fast: device: got cpu; supported: cuda" in str(passed)
        on_cuda = registry.select("gate", PluginChoice("auto"), request_on("cuda"))
        assert (on_cuda.name, on_cuda.passed_over) == ("fast", ())
        assert on_cuda.why == "auto: first in the order, supports the request"
        assert "d_unused_unused" not in sys.modules

    def test_what_is_broken_or_missing_is_passed_over(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("broken", distribution="d-broken", source="import no_such_module_here")
        site.gate(
            "raises", distribution="d-raises", source=GOOD_GATE.replace("return Support.yes()", "return 1/0")
        )
        site.gate("works", distribution="d-works")
        order(site, "dba-attention", "ORDER = {'gate': ['missing', 'broken', 'raises', 'works']}")
        selection = site.registry().select("gate", "auto", request_on())
        assert selection.name == "works"
        problems = {passed.name: passed.problem or "" for passed in selection.passed_over}
        assert "unknown gate 'missing'" in problems["missing"]
        assert "no_such_module_here" in problems["broken"]
        assert "ZeroDivisionError" in problems["raises"]
        assert selection.why.endswith("after missing, broken, raises")

    def test_our_order_first_then_the_others_by_name(self, site: FakeSite, request_on: RequestOn) -> None:
        for name in ("a", "b", "c", "d"):
            site.gate(name, distribution=f"d-{name}", source=CUDA_GATE)
        order(site, "zz", "ORDER = {'gate': ('d',)}")
        order(site, "aa", "ORDER = {'gate': ('c', 'b')}")
        order(site, "dba-attention", "ORDER = {'gate': ('a',), 'null_token': ('none',)}")
        with pytest.raises(UnsupportedError) as caught:
            site.registry().select("gate", "auto", request_on("cpu"))
        assert [reason.subject for reason in caught.value.reasons] == [f"{n}, device" for n in "acbd"]
        assert "no gate supports the request; choose one by name" in str(caught.value)

    def test_an_order_of_its_own_for_a_device(self, site: FakeSite, request_on: RequestOn) -> None:
        anywhere = GOOD_GATE.replace('if request.device == "cpu"', "if True")
        for name in ("a", "b"):
            site.gate(name, distribution=f"d-{name}", source=anywhere)
        order(site, "dba-attention", "ORDER = {'gate': {'cuda': ('b', 'a'), '*': ('a', 'b')}}")
        registry = site.registry()
        chosen = {
            d: registry.select("gate", "auto", request_on(d)).name for d in ("cpu", "cuda", "cuda:1", "mps")
        }
        assert chosen == {"cpu": "a", "cuda": "b", "cuda:1": "b", "mps": "a"}

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ("ORDER = {'gate': {'cuda': 'a'}}", "one per device type"),
            ("ORDER = {'gate': {1: ('a',)}}", "one per device type"),
            ("raise RuntimeError('broken order')", "RuntimeError: broken order"),
            ("OTHER = 1", "AttributeError"),
            ("ORDER = ['a']", "no mapping of kinds to names"),
            ("ORDER = {'gates': ('a',)}", "unknown plugin kind 'gates'"),
            ("ORDER = {'gate': 'a'}", "allowed: a list of plugin names"),
            ("ORDER = {'gate': (1,)}", "allowed: a list of plugin names"),
        ],
    )
    def test_a_broken_order_is_passed_over(
        self, site: FakeSite, request_on, source: str, problem: str
    ) -> None:
        site.gate("works", distribution="d-works")
        order(site, "aa", source)
        order(site, "dba-attention", "ORDER = {'gate': ('works',)}")
        selection = site.registry().select("gate", "auto", request_on())
        assert selection.name == "works"
        (passed,) = selection.passed_over
        assert passed.name == "auto order"
        assert passed.problem is not None
        assert "of aa cannot be used" in passed.problem
        assert problem in passed.problem

    def test_a_namesake_elsewhere_disturbs_nobody(self, site: FakeSite, request_on: RequestOn) -> None:
        site.module("ours_gate", GOOD_GATE.replace("NAME", "causal"))
        site.module("ours_order", "ORDER = {'gate': ('causal',)}")
        site.distribution(
            "dba-attention",
            {"gate": {"causal": "ours_gate"}, "dba.auto_order": {"order": "ours_order:ORDER"}},
        )
        site.gate("causal", distribution="copycat")
        selection = site.registry().select("gate", "auto", request_on())
        assert selection.info.distribution == "dba-attention"
        assert selection.passed_over == ()

    def test_nothing_in_the_order(self, site: FakeSite, request_on: RequestOn) -> None:
        site.gate("one", distribution="d-one")
        with pytest.raises(UnsupportedError, match="no gate supports the request"):
            site.registry().select("gate", "auto", request_on())

    def test_options_need_a_name(self, site: FakeSite, request_on: RequestOn) -> None:
        with pytest.raises(ConfigError, match="choose one by name") as caught:
            site.registry().select("gate", PluginChoice("auto", options={"bias": 1}), request_on())
        assert caught.value.path == "plugins.gate.options"
