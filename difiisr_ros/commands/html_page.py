"""Pages that open offline, alone: a template beside this file, filled; plots are inline SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fill_template(name: str, filters: dict[str, Any], **values: object) -> str:
    """The template ``NAME.html.j2`` with these filters and values; the same gives the same text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    template = Path(__file__).with_name(f"{name}.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(**values)


def svg_of(figure: Figure, salt: str) -> str:
    """A figure as an SVG element; ``salt`` keeps its names apart from those of others."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
