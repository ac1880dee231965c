"""Every error about plugins that a user can meet, made for real.

The whole texts stand in the error catalogue, docs/reference/errors.md: the test makes every error and
compares, `PYTHONPATH=tests python tests/registry/error_cases.py` writes the page.
"""

from __future__ import annotations

from pathlib import Path

import attrs
from error_acts import (
    BARE,
    Act,
    build,
    choose,
    choose_summarizer,
    duplicate,
    malformed,
    ordered,
    plugins,
    recorded,
    sampled,
    twice,
    under_contract,
    with_gate,
)
from fake_site import GOOD_GATE, empty_site

from dba_cli.failure import in_flags
from dba_core.errors import (
    ConfigError,
    DBAError,
    PluginError,
    RecordMismatchError,
    UnsupportedError,
    UsageError,
)

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"


@attrs.frozen
class ErrorCase:
    """section and title: of the page. done: what a user did. raises: does it."""

    section: str
    title: str
    done: str
    error: type[DBAError]
    raises: Act


FINDING, LISTS, OPTIONS, LAYERS, RECORDS = (
    "Finding and loading a plugin",
    "Allow and block lists",
    "Options",
    "Choices and layers",
    "Records",
)

CASES = [
    ErrorCase(FINDING, "Unknown plugin", "--plugin gate=sotf", PluginError, choose("sotf")),
    ErrorCase(
        FINDING,
        "A plugin of another kind",
        "--plugin summarizer=soft",
        PluginError,
        choose_summarizer("soft"),
    ),
    ErrorCase(
        FINDING, "An option without its name", "--plugin gate=soft:0.3", PluginError, choose("soft:0.3")
    ),
    ErrorCase(
        FINDING,
        "Broken plugin: its module cannot be imported",
        "--plugin gate=hard",
        PluginError,
        with_gate("import no_such_module_here", choose("hard")),
    ),
    ErrorCase(
        FINDING,
        "Broken plugin: no hook",
        "--plugin gate=hard",
        PluginError,
        with_gate("x = 1", choose("hard")),
    ),
    ErrorCase(
        FINDING, "Broken plugin: its entry point is no module", "--plugin gate=hard", PluginError, malformed
    ),
    ErrorCase(
        FINDING, "Broken plugin: listed twice by one distribution", "--plugin gate=hard", PluginError, twice
    ),
    ErrorCase(FINDING, "Broken plugin: it fails to build", "--plugin gate=hard", PluginError, build),
    ErrorCase(FINDING, "Duplicate name", "--plugin gate=soft", PluginError, duplicate),
    ErrorCase(
        FINDING,
        "Outdated plugin",
        "--plugin gate=hard, written for contract 0",
        PluginError,
        with_gate(GOOD_GATE.replace("contract = 1", "contract = 0"), choose("hard")),
    ),
    ErrorCase(
        FINDING,
        "Outdated plugin, beyond the deprecation window",
        "--plugin gate=hard, written for contract 1 where 3 is current and 2 is taken for now",
        PluginError,
        with_gate(GOOD_GATE, under_contract(3, "0.9", choose("hard"))),
    ),
    ErrorCase(
        FINDING,
        "Plugin for a newer dba",
        "--plugin gate=hard, written for contract 2",
        PluginError,
        with_gate(GOOD_GATE.replace("contract = 1", "contract = 2"), choose("hard")),
    ),
    ErrorCase(
        FINDING,
        "A plugin that cannot do what was asked",
        "--plugin gate=soft --device cuda",
        UnsupportedError,
        choose("soft", device="cuda"),
    ),
    ErrorCase(
        FINDING,
        "No plugin can do what was asked",
        "--device xpu, gate=auto",
        UnsupportedError,
        lambda site: ordered(site, "xpu"),
    ),
    ErrorCase(
        FINDING,
        "A fallback under --strict",
        "--strict, gate=auto",
        UnsupportedError,
        lambda site: ordered(site, "cpu"),
    ),
    ErrorCase(
        LISTS,
        "Blocked plugin",
        "--no-plugin soft --plugin gate=soft",
        PluginError,
        choose("soft", blocked=("soft",)),
    ),
    ErrorCase(
        LISTS,
        "Plugin outside of the allow list",
        "DBA_PLUGINS_ALLOW=other:* dba run --plugin gate=soft",
        PluginError,
        with_gate(GOOD_GATE, choose("soft", allow="other:*")),
    ),
    ErrorCase(
        LISTS,
        "Unknown name in the block list",
        "--no-plugin sotf",
        PluginError,
        choose("soft", blocked=("sotf",)),
    ),
    ErrorCase(
        LISTS,
        "Unknown name in the allow list",
        "DBA_PLUGINS_ALLOW=acme:sotf",
        PluginError,
        choose("soft", allow="acme:sotf"),
    ),
    ErrorCase(LISTS, "Empty allow list", "DBA_PLUGINS_ALLOW=,", PluginError, choose("soft", allow=",")),
    ErrorCase(
        OPTIONS,
        "Unknown option",
        "--plugin gate=soft:bais=1",
        ConfigError,
        choose("soft", options={"bais": 1}),
    ),
    ErrorCase(
        OPTIONS,
        "Wrong type",
        '--plugin gate=soft:bias="1"',
        ConfigError,
        choose("soft", options={"bias": "1"}),
    ),
    ErrorCase(
        OPTIONS,
        "Out of range",
        "--plugin gate=soft:bias=1.5",
        ConfigError,
        choose("soft", options={"bias": 1.5}),
    ),
    ErrorCase(
        OPTIONS,
        "A plugin without options",
        "--plugin gate=hard:bias=1",
        ConfigError,
        with_gate(BARE, choose("hard", options={"bias": 1})),
    ),
    ErrorCase(
        OPTIONS,
        "Options without a name",
        "--plugin gate=auto:bias=1",
        ConfigError,
        choose("auto", options={"bias": 1}),
    ),
    ErrorCase(LAYERS, "Unknown kind", "--plugin gat=soft", ConfigError, plugins("gat=soft")),
    ErrorCase(LAYERS, "A choice that cannot be read", "--plugin gate", ConfigError, plugins("gate")),
    ErrorCase(
        LAYERS,
        "Layers that cannot be read",
        "--plugin gate@layers.3-1=soft",
        ConfigError,
        plugins("gate@layers.3-1=soft"),
    ),
    ErrorCase(
        LAYERS,
        "A place that is not layers",
        "--plugin gate@layer.0=soft",
        ConfigError,
        plugins("gate@layer.0=soft"),
    ),
    ErrorCase(
        LAYERS,
        "Two choices for one layer",
        "--plugin gate@layers.0-2=soft --plugin gate@layers.2-3=hard",
        ConfigError,
        plugins("gate@layers.0-2=soft", "gate@layers.2-3=hard"),
    ),
    ErrorCase(
        LAYERS,
        "Two choices for all layers",
        "--plugin gate=soft --plugin gate=hard",
        ConfigError,
        plugins("gate=soft", "gate=hard"),
    ),
    ErrorCase(
        LAYERS,
        "A layer that the model does not have",
        "--plugin gate@layers.2-5=soft",
        ConfigError,
        plugins("gate@layers.2-5=soft"),
    ),
    ErrorCase(
        LAYERS,
        "Another gate for a trained model",
        "dba sample latest --plugin gate=soft",
        UsageError,
        sampled("gate=soft"),
    ),
    ErrorCase(
        LAYERS,
        "A decode backend for some layers of a trained model",
        "dba sample latest --plugin decode_backend@layers.0=streaming",
        UsageError,
        sampled("decode_backend@layers.0=streaming"),
    ),
    ErrorCase(
        RECORDS,
        "A recorded plugin is not installed",
        "dba run --config runs/latest/resolved_config.json",
        RecordMismatchError,
        recorded(None),
    ),
    ErrorCase(
        RECORDS,
        "A recorded plugin is that of another distribution now",
        "dba run --config runs/latest/resolved_config.json",
        RecordMismatchError,
        recorded("other", version="2.0"),
    ),
    ErrorCase(
        RECORDS,
        "A recorded plugin has another version",
        "dba run --config runs/latest/resolved_config.json",
        RecordMismatchError,
        recorded("acme", version="1.1"),
    ),
    ErrorCase(
        RECORDS,
        "A plugin was recorded under another contract",
        "dba run --config runs/latest/resolved_config.json",
        RecordMismatchError,
        recorded("acme", contract=0),
    ),
    ErrorCase(
        RECORDS,
        "A plugin that single layers recorded has another version",
        "dba run --config runs/latest/resolved_config.json",
        RecordMismatchError,
        recorded("acme", version="1.1", layers="0-1"),
    ),
]

HEAD = """\
# Errors

What `dba` says about plugins when something is wrong: one paragraph on stderr, with what was wrong, the
value, what is allowed and what to do. The texts are real ones: a test makes every error and compares the
whole text, for two imaginary distributions, `acme` with a gate `soft` and `other` with a gate `hard`. In
Python the same errors are exceptions of `dba_core.errors`; [exit codes](exit-codes.md) lists them all.
"""


def page() -> str:
    """The error catalogue, from the errors themselves."""
    sections = dict.fromkeys(case.section for case in CASES)
    parts = [HEAD]
    for section in sections:
        parts.append(f"\n## {section}\n")
        parts += [entry(case) for case in CASES if case.section == section]
    return "".join(parts)


def entry(case: ErrorCase) -> str:
    """The part of the page about one error, which is made for it."""
    with empty_site() as site:
        try:
            case.raises(site)
        except case.error as error:
            what = f"`{case.done}`: exit code {error.exit_code}, `{type(error).__name__}`"
            return f"\n### {case.title}\n\n{what}\n\n```text\nerror: {in_flags(str(error))}\n```\n"
    raise AssertionError(f"{case.title}: nothing was raised")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
