"""``report.html`` of a fleet: distributions, the worst recordings, and links to their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from difiisr_ros.commands.html_page import fill_template, svg_of
from difiisr_ros.fleet_jobs import SCHEMA

_PICTURE = 480  # pixels on a side, most
_WORST = 3  # of each measure
_LISTED = 2_000  # rows; fleet.parquet has all
_LOWER_IS_WORSE = ("psnr", "ssim", "clip_iqa", "musiq")  # begin their names
_COLUMNS = 3  # of histograms


def fleet_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """HTML about rows as of ``fleet_jobs.SCHEMA``; of a single one, all that is known of it.

    Pictures and reports are looked for in the rows' ``folder``. The same rows give the same text.
    """
    known = pa.Table.from_pylist(list(rows), SCHEMA).to_pylist()  # with None for what is not
    table = pd.DataFrame(known, columns=SCHEMA.names)
    measures = _measures(table)
    unusable = [row for row in known if row["fault"]]
    return fill_template(
        "fleet_report",
        {"number": lambda value: f"{value:,.4g}" if pd.notna(value) else "-"},
        rows=known[:_LISTED],
        unusable=unusable[:_LISTED],
        unusable_count=len(unusable),
        total=table[["frames_in", "frames_out", "refused", "seconds"]].sum().to_dict(),
        count=len(table),
        measures=measures.round(12).to_dict("records"),
        names=list(measures),
        worst={
            name: [(known[n], value) for n, value in found.items()]
            for name in measures
            if len(found := _worst(measures[name]))
        },
        plot=_histograms(measures) if len(table) > 1 else "",
    )


def write_picture(folder: Path, frames: Sequence[np.ndarray]) -> None:
    """``picture.png`` of the first of the frames ``(H, W)``, 2 to 98 % of it as grey."""
    for counts in frames[:1]:
        lo, hi = np.quantile(counts, (0.02, 0.98))
        grey = np.clip((counts.astype(np.float32) - lo) * (255 / max(hi - lo, 1e-6)), 0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
        picture.thumbnail((_PICTURE, _PICTURE))
        picture.save(folder / "picture.png")


def _measures(table: pd.DataFrame) -> pd.DataFrame:
    """What recordings are compared by, a column each; those without a value are left out."""
    seen = table[["frames_in", "frames_out", "refused", "seconds"]].astype(float)
    found = {
        "frames": seen.frames_out,
        "refused, %": 100 * seen.refused / seen.frames_in,
        "ms a frame": 1e3 * seen.seconds / seen.frames_out,
        "noise, counts": table.noise,
        "noise, % of the span": table.noise_percent,
        "span, counts": table.span,
        "invalid pixels": table.invalid_pixels,
        "events": table.events,
    }
    metrics = pd.DataFrame([dict(m) if isinstance(m, (list, dict)) else {} for m in table.metrics])
    both = pd.concat([pd.DataFrame(found), metrics], axis="columns").astype(float)
    return both.replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")


def _worst(values: pd.Series) -> pd.Series:
    """The worst few; none where all are as good, or the measure is no matter of good and bad."""
    if values.name.startswith(("frames", "span")) or values.nunique() < 2:
        return values[:0]
    ascending = values.name.startswith(_LOWER_IS_WORSE)
    return values.dropna().sort_values(ascending=ascending, kind="stable")[:_WORST]


def _histograms(measures: pd.DataFrame) -> str:
    """A histogram of each measure, as SVG."""
    from matplotlib.figure import Figure  # here: workers need none

    lines = max(1, -(-measures.shape[1] // _COLUMNS))
    figure = Figure(figsize=(10, 2.1 * lines), layout="constrained")
    for number, name in enumerate(measures, 1):
        axes = figure.add_subplot(lines, _COLUMNS, number)
        axes.hist(measures[name].dropna(), bins=30, color="#4477aa")
        axes.set_title(name, fontsize=9)
    return svg_of(figure, "fleet")
