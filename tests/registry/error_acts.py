"""What a user does wrong about plugins, done for real on a fake site; each act raises. The table of them is
`error_cases`.

Two imaginary distributions: `acme` with a sound gate `soft`, `other` with a gate `hard`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import TypeAlias

import attrs
from fake_site import GOOD_GATE, FakeSite, gate_contract, gate_request

from dba_cli.options import DecodingRunChoice
from dba_core.config import PluginChoice, PluginChoices, PluginRecord
from dba_core.config.loading import load_config
from dba_core.registry import Access, Registry, check_records, refuse_fallbacks
from dba_core.report import SilentReporter

Act: TypeAlias = Callable[[FakeSite], object]

ORDER = "[dba.auto_order]\norder = order_mod:ORDER\n"
CHECKED = GOOD_GATE.replace(
    "bias: float = 0.5", "bias: float = attrs.field(default=0.5, validator=attrs.validators.le(1))"
)
BARE = GOOD_GATE.replace("= Options", "= NoOptions").replace("import Reason", "import NoOptions, Reason")
BROKEN_BUILD = GOOD_GATE.replace(
    'return f"{self.name} {options.bias} {request.device}"', "return [][options.bias > 0]"
)
CUDA_GATE = GOOD_GATE.replace('"cpu"', '"cuda"').replace("--device cpu", "--device cuda")
RECORD = PluginRecord(distribution="acme", version="1.0", contract=1, how="named", why="chosen by name")


def registry(
    site: FakeSite,
    *,
    blocked: tuple[str, ...] = (),
    allow: str | None = None,
) -> Registry:
    """The site's plugins under a block list, an allow list, and other contract numbers for gates."""
    environ = {} if allow is None else {"DBA_PLUGINS_ALLOW": allow}
    return Registry(
        distributions=importlib.metadata.distributions(path=[str(site.folder)]),
        access=Access.from_environment(environ, blocked=blocked),
    )


def choose(name: str, *, options: dict[str, object] | None = None, device: str = "cpu", **how: object) -> Act:
    """Choose a gate on a site with a sound one, `acme:soft`, and an order that prefers `hard` to it."""

    def act(site: FakeSite) -> object:
        site.gate("soft", distribution="acme", source=CHECKED)
        choice = PluginChoice(name, options=options or {})
        return registry(site, **how).select("gate", choice, gate_request(device))  # type: ignore[arg-type]

    return act


def under_contract(number: int, previous_until: str, act: Act) -> Act:
    """The act where this library's contract for gates has another number."""

    def later(site: FakeSite) -> object:
        with gate_contract(number, previous_until=previous_until):
            return act(site)

    return later


def choose_summarizer(name: str) -> Act:
    """Choose a summarizer where there is only a gate, `acme:soft`."""

    def act(site: FakeSite) -> object:
        site.gate("soft", distribution="acme")
        return registry(site).find("summarizer", name)

    return act


def with_gate(source: str, then: Act) -> Act:
    """The same with another distribution's gate `hard` on the site."""

    def act(site: FakeSite) -> object:
        site.gate("hard", distribution="other", source=source)
        return then(site)

    return act


def duplicate(site: FakeSite) -> object:
    site.gate("soft", distribution="other", version="2.1")
    return choose("soft")(site)


def malformed(site: FakeSite) -> object:
    site.distribution("other", "[dba.gates]\nhard = not a module!\n")
    return registry(site).load("gate", "hard")


def twice(site: FakeSite) -> object:
    site.distribution("other", "[dba.gates]\nhard = first_mod\nhard = second_mod\n")
    return registry(site).load("gate", "hard")


def ordered(site: FakeSite, device: str) -> object:
    """`auto` that prefers `hard`, which supports cuda alone, to `soft`, which supports the CPU alone."""
    site.module("order_mod", "ORDER = {'gate': ('hard', 'soft')}")
    site.distribution("orders", ORDER)
    site.gate("hard", distribution="other", source=CUDA_GATE)
    selection = choose("auto", device=device)(site)
    refuse_fallbacks([("0-3", selection)])  # type: ignore[list-item]
    return selection


def recorded(installed: str | None, *, version: str = "1.0", contract: int = 1, layers: str = "") -> Act:
    """Run a recorded configuration again, with `installed` at `version` in place of acme 1.0."""

    def act(site: FakeSite) -> object:
        if installed is not None:
            site.gate("soft", distribution=installed, version=version)
        choice = PluginChoice("soft", record=attrs.evolve(RECORD, contract=contract))
        choices = PluginChoices(layers={layers: {"gate": choice}}) if layers else PluginChoices(gate=choice)
        return check_records(choices, registry(site), allow_drift=False)

    return act


def build(site: FakeSite) -> object:
    site.gate("hard", distribution="other", source=BROKEN_BUILD)
    return registry(site).select("gate", "hard", gate_request()).build()


def plugins(*texts: str, sets: tuple[str, ...] = ()) -> Act:
    """Read the configuration of a command line."""
    return lambda _: load_config(plugins=texts, sets=sets)


def sampled(text: str) -> Act:
    """Load a run for `dba sample`."""
    choice = DecodingRunChoice(run="latest", plugin=(text,))
    return lambda _: choice.load(SilentReporter())
