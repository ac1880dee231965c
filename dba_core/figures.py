"""Names in pictures, and pictures on the disk: no text is a formula, and a letter without a glyph is a box.

matplotlib is imported by whoever draws.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dba_core.printable import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Letters of a name and of a whole title; longer ones leave no room for the picture.
NAME, TITLE = 64, 120


def drawn(text: str, *, longest: int = NAME) -> str:
    """A text in a title, a label or a legend: one line, shown as it is, its middle left out if it is long.

    matplotlib reads `$...$` as a formula unless each dollar has a backslash, which it takes off again.
    """
    shown = one_line(text)
    if len(shown) > longest:
        shown = f"{shown[: longest // 2 - 2]} ... {shown[3 - longest // 2 :]}"
    return shown.replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture, and the folder that it is for. The fonts at hand may lack a letter of a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        figure.savefig(path, format="png")
