"""Names in pictures: no formula, no warning about a glyph, no picture without room."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from dba_core.printable import one_line
from dba_core.report import NAME, drawn, save_png


@given(st.text(max_size=NAME // 10))  # an escape takes up to ten letters
def test_matplotlib_draws_the_text_itself(text: str) -> None:
    shown, is_formula = Text()._preprocess_math(drawn(text))
    assert not is_formula
    assert shown == one_line(text)


def test_a_long_name_loses_its_middle() -> None:
    shown = drawn("begin" + "x" * 500 + "end")
    assert len(shown) <= NAME
    assert shown.startswith("beginx")
    assert shown.endswith("xend")
    assert " ... " in shown


@pytest.mark.parametrize("name", ["$\\frac{$", "a $x$ b", "你好 🙂 \udcff\x1b[31m", "नमस्ते", "$", "\\$"])
def test_a_picture_is_drawn_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(3.0, 2.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=drawn(name))
    axes.set_title(drawn(name))
    axes.legend()
    save_png(figure, tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")
