"""Nothing that a plugin does while it is looked at ends the command or changes the process around it."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_request

from dba_cli.commands.plugins.doctor import diagnose
from dba_core.config import PluginChoice
from dba_core.errors import ConfigError, PluginError
from dba_core.registry.contain import Failure, contain, kept_surroundings, shown

PANIC = "class PanicException(BaseException): pass\n"
SUPPORTS = "        if request.device"
DEEDS = {
    "panics": PANIC + "raise PanicException('panicked')",
    "panics in its hook": PANIC + GOOD_GATE.replace("return Gate()", "raise PanicException('panicked')"),
    "panics when asked": PANIC
    + GOOD_GATE.replace(SUPPORTS, "        raise PanicException('panicked')\n" + SUPPORTS),
    "exits": "import sys\nsys.exit(0)",
    "exits when asked": "import sys\n" + GOOD_GATE.replace(SUPPORTS, "        sys.exit(0)\n" + SUPPORTS),
    "leaves a generator": "raise GeneratorExit",
    "leaves in its hook": GOOD_GATE.replace("return Gate()", "raise GeneratorExit"),
    "leaves when asked": GOOD_GATE.replace(SUPPORTS, "        raise GeneratorExit\n" + SUPPORTS),
    "has no end": "def f():\n    f()\nf()",
    "has no memory": "raise MemoryError",
    "is no Python": "def f(:",
    "raises what has no text": "class E(Exception):\n    def __str__(self):\n        raise KeyError\nraise E",
    "has a property that panics": PANIC
    + GOOD_GATE.replace(
        'summary = "a gate for tests"', "@property\n    def summary(self):\n        raise PanicException"
    ),
    "answers without reasons": GOOD_GATE.replace(
        SUPPORTS, "        return Support(reasons=None)\n" + SUPPORTS
    ),
    "answers with a text": GOOD_GATE.replace(SUPPORTS, "        return Support('no GPU')\n" + SUPPORTS),
    "answers nothing": GOOD_GATE.replace(SUPPORTS, "        return None\n" + SUPPORTS),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_deed_is_one_plugins_problem(site: FakeSite, deed: str) -> None:
    site.gate("bad", distribution="bad-dist", source=DEEDS[deed])
    site.gate("soft", distribution="acme")
    found = {each.subject: each for each in diagnose(site.registry())}
    assert found["gate acme:soft"].status == "ok"
    assert found["gate bad-dist:bad"].status == "error"
    with pytest.raises(PluginError):
        site.registry().select("gate", "bad", gate_request())


NOISE = """
import os, sys, warnings
print("python")
os.write(1, b"descriptor\\n")
sys.stderr.write("error\\n")
sys.stdout = None
os.chdir("/")
warnings.simplefilter("error")
"""


@pytest.mark.parametrize("where", ["import", "hook", "supports", "build"])
def test_the_process_is_as_before_and_stdout_is_left_alone(
    site: FakeSite, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    places = {"hook": "    return Gate()", "supports": SUPPORTS, "build": "        return f"}
    source = NOISE + GOOD_GATE
    if where != "import":
        place = places[where]
        indent = place[: len(place) - len(place.lstrip())]
        noise = "".join(f"{indent}{line}\n" for line in NOISE.strip().splitlines())
        source = GOOD_GATE.replace(place, noise + place)
    site.gate("loud", distribution="acme", source=source)
    before = os.getcwd(), sys.stdout, sys.stderr, list(warnings.filters)
    print("mine, before")
    site.registry().select("gate", "loud", gate_request()).build()
    print("mine, after")
    assert (os.getcwd(), sys.stdout, sys.stderr, list(warnings.filters)) == before
    out, err = capfd.readouterr()
    assert out == "mine, before\nmine, after\n"
    assert sorted(err.split()) == ["descriptor", "error", "python"]


def test_within_one_another_the_outermost_puts_things_back() -> None:
    before = sys.stdout
    with kept_surroundings():
        with kept_surroundings():
            assert sys.stdout is sys.stderr
        assert sys.stdout is sys.stderr
    assert sys.stdout is before


def test_what_stops_the_program_is_not_contained() -> None:
    def leave() -> None:
        raise GeneratorExit

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contain(interrupt)
    assert isinstance(contain(sys.exit), Failure)
    assert isinstance(contain(leave), Failure)


def test_foreign_objects_are_shown_in_one_fit_line() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise ValueError

    assert shown(Bad()) == "an object of type Bad"
    assert shown("a\x1b\nb") == "'a\\x1b\\nb'"
    assert len(shown("x" * 5000)) < 600
    assert str(Failure(ValueError("a \x1b[31m\nb"))) == "ValueError: a \\x1b[31m b"


def test_a_build_that_panics_or_exits_is_the_plugins_fault(site: FakeSite) -> None:
    for number, deed in enumerate(
        ("raise PanicException('panicked')", "raise SystemExit(0)", "raise GeneratorExit")
    ):
        source = PANIC + GOOD_GATE.replace("        return f", f"        {deed}\n        return f")
        site.gate(f"bad{number}", distribution=f"d{number}", source=source)
        with pytest.raises(
            PluginError, match=rf"^gate 'bad{number}' of d{number} 1\.0 .* failed to build \("
        ) as caught:
            site.registry().select("gate", f"bad{number}", gate_request()).build()
        assert caught.value.__cause__ is not None


def test_an_error_in_our_words_keeps_its_path(site: FakeSite) -> None:
    source = "from dba_core.errors import ConfigError\n" + GOOD_GATE.replace(
        "        return f", "        raise ConfigError('too wide', path='bias')\n        return f"
    )
    site.gate("one", distribution="d", source=source)
    with pytest.raises(ConfigError) as caught:
        site.registry().select("gate", "one", gate_request()).build()
    assert str(caught.value.under("plugins")) == "plugins.bias: gate 'one' of d 1.0: too wide"


def test_a_loud_order_of_auto(site: FakeSite, capfd: pytest.CaptureFixture[str]) -> None:
    site.module("loud_order", "print('order')\nORDER = {'gate': ['soft']}\n")
    site.distribution("orders", "[dba.auto_order]\norder = loud_order:ORDER\n")
    site.gate("soft", distribution="acme")
    assert site.registry().select("gate", "auto", gate_request()).name == "soft"
    assert capfd.readouterr().out == ""


def test_reprs_say_what_something_is(site: FakeSite) -> None:
    site.gate("soft", distribution="acme", version="2.1")
    registry = site.registry()
    assert repr(registry).startswith("<Registry: 0 summarizer, 1 gate, 0 null_token, 0 decode_backend, ")
    assert repr(registry).endswith("; 0 loaded>")
    chosen = registry.select("gate", PluginChoice("soft", options={"bias": 0.25}), gate_request())
    assert repr(chosen) == (
        "<Selection: gate 'soft' of acme 2.1 (bias=0.25, taps=[], label=None), chosen by name>"
    )
    assert repr(registry).endswith("; 1 loaded>")
    assert repr(PluginChoice("soft", options={"bias": 1})) == "<PluginChoice: soft, bias=1>"
    assert repr(chosen.choice()).endswith(", recorded with acme 2.1>")
