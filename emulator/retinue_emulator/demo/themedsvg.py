"""matplotlib figures as inline SVG that takes its text and line colours from the page, light or dark."""

from __future__ import annotations

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that nothing else uses; in the SVG they become what the page defines.
TEXT = "#010203"
SOFT = "#040506"
LINE = "#070809"
_CSS = {TEXT: "var(--text)", SOFT: "var(--soft)", LINE: "var(--line)"}
_LIGHT = {TEXT: "#1c2530", SOFT: "#5b6673", LINE: "#d9dee5"}


class ThemedFigure:
    """A figure drawn with the stand-in colours; `svg` gives it for the report, `image` as a file of its own."""

    def __init__(self, name: str, figure: Figure) -> None:
        self.name = name
        self.figure = figure

    def svg(self) -> str:
        """An `<svg>` element without outside references, scaled by its container."""
        text = self._render()
        text = text[text.index("<svg") :]
        text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
        text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
        return _recolour(text, _CSS)

    def image(self) -> str:
        """A whole SVG file on white, for documents."""
        text = _recolour(self._render(), _LIGHT)
        # Pixels instead of points: not every viewer knows points.
        text = re.sub(r'(width|height)="(\d+)[\d.]*pt"', r'\1="\2"', text, count=2)
        return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', text, count=1)

    def _render(self) -> str:
        # A fixed salt makes the ids, and so the file, the same for the same numbers.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            out = io.StringIO()
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
        # A hundredth of a point is finer than any screen, and makes the file a third smaller.
        return re.sub(r"(\d+\.\d\d)\d+", r"\1", text)


def style(axes: Axes, *, ylabel: str, title: str = "") -> None:
    """The look that all plots share: light grid, no frame, words left-aligned above."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=SOFT, labelcolor=SOFT, labelsize=9, length=3)
    axes.grid(True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel(ylabel, color=SOFT, fontsize=9)
    if title:
        axes.set_title(title, color=TEXT, fontsize=10.5, loc="left", pad=6)


def legend(axes: Axes, *, columns: int = 4) -> None:
    """A legend in the line of the title, where it covers no data; nothing when nothing has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False,
            fontsize=8.5,
            labelcolor=SOFT,
            ncols=columns,
            loc="lower right",
            bbox_to_anchor=(1.0, 0.97),
            borderaxespad=0.0,
            handlelength=1.4,
            columnspacing=1.4,
        )


def _recolour(text: str, colours: dict[str, str]) -> str:
    for stand_in, colour in colours.items():
        text = text.replace(stand_in, colour)
    return text
