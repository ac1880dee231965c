"""`dba plugins why`: which plugin a configuration gets, and what is to be said about every other one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli.commands.plugins.common import KIND_OF_LAYERS
from dba_cli.failure import in_flags
from dba_cli.options import config_options, json_option, load_checked, plugin_options, strict_option
from dba_cli.output.terminal import echo
from dba_core.contracts import Kind
from dba_core.errors import DBAError, UnsupportedError
from dba_core.runs.choosing import ConfigChoice, PluginUse

if TYPE_CHECKING:
    from dba_core.config.run import RunConfig
    from dba_core.contracts import Reason
    from dba_core.registry import PluginInfo, Registry, Selection
    from dba_core.runs.prepare import PlacedSelection


@click.command()
@click.argument("kind", type=KIND_OF_LAYERS)
@config_options
@plugin_options
@strict_option
@json_option
def why(kind: Kind, flags: ConfigChoice, plugin_flags: PluginUse, strict: bool, as_json: bool) -> None:
    """Explain which plugin of KIND a configuration gets, and why not the others.

    Where layers chose for themselves, each choice is explained, with its layers.

    \b
    Examples:
      dba plugins why decode_backend
      dba plugins why gate --preset paper-gqa
      dba plugins why summarizer --plugin summarizer@layers.0-1=conv --json
    """
    from dba_cli.output.progress import TerminalReporter
    from dba_cli.output.rendering import echo_json
    from dba_core.registry import refuse_fallbacks

    registry = plugin_flags.registry(TerminalReporter())
    config = load_checked(flags, registry).config
    placed = _placed(kind, config, registry)
    if strict:
        refuse_fallbacks((each.where, each.selection) for each in placed)
    explained = [(each, explain_others(registry, each.selection)) for each in placed]
    if as_json:
        documents = [_document(each, others) for each, others in explained]
        echo_json(documents[0] if len(documents) == 1 else documents)
        return
    for each, others in explained:
        _show(each, others, of_several=len(placed) > 1)


def _placed(kind: Kind, config: RunConfig, registry: Registry) -> list[PlacedSelection]:
    """The selections of one kind. Raises UnsupportedError where the model has no place for that kind."""
    from dba_core.model.language_model import LanguageModel
    from dba_core.runs.estimate import policy_of
    from dba_core.runs.prepare import model_choices, placed_selections, resolve_device

    device, choices = resolve_device(config.device), model_choices(config.plugins)
    settings = attrs.evolve(config.model, vocab_size=config.model.vocab_size or 1)  # no choice depends on it
    model = LanguageModel(settings, plugins=choices, registry=registry, device=device, shapes_only=True)
    placed = placed_selections(model, choices, policy_of(config), device=device)
    found = [each for each in placed if each.selection.kind == kind]
    if not found:
        knobs, mode = config.model.train_long_seq, config.model.attention.mode
        raise UnsupportedError(
            f"this model has no {kind}: model.train_long_seq.enabled={str(knobs.enabled).lower()} and "
            f"model.attention.mode={mode!r}; a {kind} needs the long-sequence path and semantic keys"
        )
    return found


def _show(placed: PlacedSelection, others: list[dict[str, Any]], *, of_several: bool) -> None:
    selection, where = placed.selection, f"@layers.{placed.where}" if of_several else ""
    chosen = f"{selection.name} of {selection.info.distribution} {selection.info.version}"
    echo(f"{selection.kind}{where}: {chosen} ({selection.why})")
    for other in others:
        echo(f"  {other['state']}: {other['name']} of {other['distribution']}: {other['why']}")
    known = {other["name"] for other in others}
    for passed in selection.passed_over:
        if passed.name not in known:
            echo(f"  passed over: {in_flags(str(passed))}")


def _document(placed: PlacedSelection, others: list[dict[str, Any]]) -> dict[str, Any]:
    selection = placed.selection
    return {
        "kind": selection.kind,
        "layers": placed.where,
        "name": selection.name,
        "distribution": selection.info.distribution,
        "version": selection.info.version,
        "how": selection.how,
        "why": selection.why,
        "request": attrs.asdict(selection.request),
        "passed_over": [
            {
                "name": passed.name,
                "problem": passed.problem and in_flags(passed.problem),
                "reasons": [attrs.asdict(reason) for reason in passed.reasons],
            }
            for passed in selection.passed_over
        ],
        "others": others,
    }


def explain_others(registry: Registry, selection: Selection) -> list[dict[str, Any]]:
    """Every other plugin of the kind, as data: those that `auto` tried first, then the rest by name.

    state: passed over, not asked, blocked or broken. why: in a sentence. reasons: its own against the
    request; none where it supports that or cannot be asked.
    """
    order = [name for name, _ in registry.auto_order(selection.kind, device=selection.request.device)]
    ranks = {passed.name: rank for rank, passed in enumerate(selection.passed_over)}
    others = []
    for info in registry.list(selection.kind):
        if info.qualified != selection.info.qualified:
            state, why, reasons = _asked(registry, info, selection, tried=info.name in ranks)
            if state == "not asked":
                why = f"{_why_not(selection, is_listed=info.name in order)}; {why}"
            told = {"state": state, "why": why, "reasons": [attrs.asdict(reason) for reason in reasons]}
            others.append({"name": info.name, "distribution": info.distribution, **told})
    return sorted(others, key=lambda other: ranks.get(other["name"], len(ranks)))


def _asked(
    registry: Registry, info: PluginInfo, selection: Selection, *, tried: bool
) -> tuple[str, str, tuple[Reason, ...]]:
    """State, why and reasons. Imports the plugin where it may be used."""
    from dba_core.registry.plugin_loading import structure_options

    refusal = registry.access.refusal(info)
    if refusal is not None:
        return "blocked", in_flags(refusal), ()
    try:
        loaded = registry.load(info.kind, info.qualified)
        answer = registry.ask(loaded, selection.request, structure_options(loaded, {}))
    except DBAError as error:
        return "broken", str(error), ()
    if isinstance(answer, str):
        return "broken", answer, ()
    verdict = "; ".join(map(str, answer.reasons or answer.next_is_better))
    if answer.ok:
        verdict = f"it supports the request{f', but {verdict}' if verdict else ''}"
    return "passed over" if tried else "not asked", verdict, answer.reasons


def _why_not(selection: Selection, *, is_listed: bool) -> str:
    if selection.how != "auto":
        return f"{selection.name!r} was {selection.why}"
    return "later in the order of auto" if is_listed else "not in the order of auto, only chosen by name"
