"""Which pictures a run draws, and where each one lies or why there is none. Called by the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dba_core.runs.folder import RunFolder
from dba_core.runs.gates import gate_means
from dba_core.runs.prepare import Prepared

#: Held-out tokens that the gates are averaged over, at most.
_GATE_TOKENS = 8192


def draw_plots(prepared: Prepared, folder: RunFolder, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name of the plot -> its path inside the run's folder, or the reason why it was left out."""
    from dba_core.runs import plots

    config, model = prepared.config, prepared.config.model
    files = {name: folder.plots / f"{name}.png" for name in ("loss", "gate", "kv_memory")}
    drawn = {name: str(path.relative_to(folder.path)) for name, path in files.items()}
    if metrics:
        plots.loss_curves(files["loss"], metrics, name=config.name)
    else:
        drawn["loss"] = "left out: nothing was logged"
    means = gate_means(
        prepared.model,
        prepared.corpus.held_out,
        context=model.context,
        limit_tokens=_GATE_TOKENS,
        batch_size=config.training.batch_size,
    )
    if means is None:
        drawn["gate"] = (
            f"left out: the gate plugin {prepared.selections.names('gate')!r} leaves the model without a gate"
        )
    else:
        tokens = min(_GATE_TOKENS, len(prepared.corpus.held_out) - 1)
        plots.gate_map(files["gate"], means, tokens=tokens, name=config.name)
    plots.memory_curves(
        files["kv_memory"],
        model.attention.shape,
        model.n_layers,
        prepared.kv_policy,
        context=model.context,
        name=config.name,
    )
    return drawn
