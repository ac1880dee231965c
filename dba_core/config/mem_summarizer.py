"""The summarizer's former place, `model.train_long_seq.mem_summarizer`: read, and moved.

Files and options in either spelling are accepted; no configuration object has the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dba_core.errors import ConfigError
from dba_core.serialization.values import exact

FIELD = "mem_summarizer"
#: The same beside the other knobs in their flat spelling, directly under `model`.
FLAT = f"train_long_seq_{FIELD}"
#: Where it stood, and where it stands.
FORMER: tuple[str, ...] = ("model", "train_long_seq", FIELD)
PRESENT: tuple[str, ...] = ("plugins", "summarizer", "name")


def moved(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's plain data with the name in its present place; `data` as it is where it has no former one.

    A former name of None or `auto` says nothing; one beside the same name with a distribution before it
    (`other:conv`) is the same. Raises ConfigError for two names, and for what is no name.
    """
    (model, stated) = _taken(data.get("model"))
    if model is None:
        return data
    rest = {**data, "model": model}
    plugins = data.get("plugins", {})
    if stated in (None, "auto") or not isinstance(plugins, Mapping):
        return rest
    choice = plugins.get("summarizer", {})
    choice = {"name": choice} if isinstance(choice, str) else choice
    if not isinstance(choice, Mapping):
        return rest
    name = choice.get("name", "auto")
    if name == "auto":
        return {**rest, "plugins": {**plugins, "summarizer": {**choice, "name": stated}}}
    if isinstance(name, str) and name.rpartition(":")[2] != stated.rpartition(":")[2]:
        raise ConfigError(
            f"{name!r} contradicts {'.'.join(FORMER)}={stated!r}: one setting, give it once",
            path=".".join(PRESENT),
        )
    return rest


def _taken(model: Any) -> tuple[dict[str, Any] | None, Any]:
    """The table `model` without the name, and the name; None for a table that has none."""
    if not isinstance(model, Mapping):
        return None, None
    knobs = model.get("train_long_seq")
    nested = isinstance(knobs, Mapping) and FIELD in knobs
    if not nested and FLAT not in model:
        return None, None
    without = {key: value for key, value in model.items() if key != FLAT}
    stated = model.get(FLAT)
    if isinstance(knobs, Mapping) and nested:
        if FLAT in model and stated != knobs[FIELD]:
            raise ConfigError(
                f"{stated!r} contradicts train_long_seq.{FIELD}={knobs[FIELD]!r}; give one of them",
                path=f"model.{FLAT}",
            )
        stated = knobs[FIELD]
        without["train_long_seq"] = {key: value for key, value in knobs.items() if key != FIELD}
    try:
        return without, exact(stated, str | None)
    except ConfigError as error:
        raise error.under(".".join(FORMER)) from None
