"""`summary.md`: the sections of the summary as tables, the pictures, the sample, what to do next."""

from __future__ import annotations

from dba_core.runs.rows import printable
from dba_core.runs.summary import Summary
from dba_core.runs.summary_text import summary_sections


def markdown(summary: Summary) -> str:
    """The whole file."""
    lines = [f"# Run {summary.name}", "", f"Finished {summary.finished}."]
    for warning in summary.warnings:
        lines += ["", f"**Warning:** {warning}"]
    for section in summary_sections(summary):
        lines += ["", f"## {section.title}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in section.rows]
    lines += ["", "## Plots", ""]
    for name, value in summary.plots.items():
        lines += [f"![{name}]({value})" if value.endswith(".png") else f"{name}: {value}", ""]
    lines += ["## Sample", "", *_fenced(printable(summary.sample.prompt + summary.sample.text), "text")]
    commands = (summary.commands.sample, summary.commands.evaluate, summary.commands.repeat)
    return "\n".join([*lines, "", "## Go on", "", *_fenced("\n".join(commands), "sh")]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text, fence]
