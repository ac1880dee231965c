"""`summary.md`: the sections of the summary as tables, the pictures, the sample, what to do next."""

from __future__ import annotations

from dba_core.markdown import fenced, inline, table
from dba_core.runs.summary import Summary
from dba_core.runs.summary_text import summary_sections


def markdown(summary: Summary) -> str:
    """The whole file."""
    lines = [f"# Run {inline(summary.name)}", "", f"Finished {summary.finished}."]
    for warning in summary.warnings:
        lines += ["", f"**Warning:** {inline(warning)}"]
    for section in summary_sections(summary):
        lines += ["", f"## {section.title}", "", *table(("", ""), section.rows)]
    lines += ["", "## Plots", ""]
    for name, value in summary.plots.items():
        lines += [f"![{name}]({value})" if value.endswith(".png") else f"{name}: {inline(value)}", ""]
    lines += ["## Sample", "", *fenced(summary.sample.prompt + summary.sample.text, "text")]
    commands = (summary.commands.sample, summary.commands.evaluate, summary.commands.repeat)
    return "\n".join([*lines, "", "## Go on", "", *fenced("\n".join(commands), "sh")]) + "\n"
