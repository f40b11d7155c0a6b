"""``recorded.html``: one self-contained page about a recording; opens offline."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from difiisr_training.evaluation.recorded.pixels import FrameResult
from difiisr_training.evaluation.recorded.report import RecordedReport
from difiisr_training.evaluation.recorded.timing import GAP

_CAMERA, _RESULT, _BAD = "#4477aa", "#228833", "#cc3311"
_LISTED_GAPS = 20
_LEGEND = {"loc": "lower right", "bbox_to_anchor": (1, 0.99), "frameon": False, "ncols": 3}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Recorded super-resolution: {{ report.topics.sr }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.sub { color: #666; margin-top: .2rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem;
         margin: 1.5rem 0 }
.card { border: 1px solid #ddd; border-radius: .5rem; padding: .7rem .9rem }
.card b { display: block; font-size: 1.5rem; line-height: 1.3 } .card span { color: #666 }
.bad b { color: #cc3311 }
table { border-collapse: collapse; margin: .5rem 0 } caption { text-align: left; color: #666 }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #eee }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
.notes { background: #fff8e5; border-left: 4px solid #e0a800; padding: .5rem 1rem; margin: 1rem 0 }
svg { width: 100%; height: auto } .scroll { overflow-x: auto } code { font-size: .9em }
</style></head><body>
<h1>What the node really did</h1>
<p class="sub"><code>{{ report.topics.image }}</code> &rarr; <code>{{ report.topics.sr }}</code>
in {{ report.bag }}{% if report.camera_bag %}, camera in {{ report.camera_bag }}{% endif %}</p>
<div class="cards">{% for name, value, bad in cards %}
<div class="card{{ ' bad' if bad }}"><b>{{ value }}</b><span>{{ name }}</span></div>{% endfor %}
</div>
{% if report.notes or report.fault %}<div class="notes">
{% if report.fault %}<p><b>Damaged:</b> {{ report.fault }}</p>{% endif %}
{% for note in report.notes %}<p>{{ note[0] | upper }}{{ note[1:] }}.</p>{% endfor %}
</div>{% endif %}
{% for title, svg in plots %}<h2>{{ title }}</h2>{{ svg | safe }}{% endfor %}
<h2>Streams</h2><div class="scroll"><table>
<tr><th>topic</th><th>messages</th><th>Hz by log time</th><th>Hz by stamp</th>
<th>jitter, ms</th><th>duplicates</th><th>out of order</th><th>gaps</th></tr>
{% for name, t in streams %}<tr><td><code>{{ name }}</code></td><td>{{ t.messages }}</td>
<td>{{ t.rate | number(2) }}</td><td>{{ t.stamp_rate | number(2) }}</td>
<td>{{ (t.interval_ms.std if t.interval_ms else none) | number(1) }}</td>
<td>{{ t.duplicates }}</td><td>{{ t.out_of_order }}</td><td>{{ t.gaps | length }}</td></tr>
{% endfor %}</table></div>
<h2>Times, ms</h2><div class="scroll"><table>
<tr><th></th><th>frames</th><th>mean</th><th>std</th><th>min</th><th>p50</th><th>p90</th>
<th>p99</th><th>max</th></tr>
{% for name, s in spreads %}<tr><td>{{ name }}</td>{% if s %}<td>{{ s.count }}</td>
{% for v in (s.mean, s.std, s.min, s.p50, s.p90, s.p99, s.max) %}<td>{{ v | number(1) }}</td>
{% endfor %}{% else %}<td colspan="8">not measured</td>{% endif %}</tr>{% endfor %}</table></div>
<h2>Frames without a result</h2><table>
<tr><th>camera frames</th><th>dropped</th><th>before the first result</th><th>between</th>
<th>after the last</th><th>results without a frame</th></tr>
<tr><td>{{ report.drops.frames }}</td><td>{{ report.drops.total }}</td>
<td>{{ report.drops.before_first }}</td><td>{{ report.drops.between }}</td>
<td>{{ report.drops.after_last }}</td><td>{{ report.drops.orphans }}</td></tr></table>
<h2>Pixels</h2><table>
<tr><th></th><th>frames</th><th>bit-exact</th><th>mean, counts</th><th>max, counts</th></tr>
<tr><td>|D(SR) - LR|</td>{% if report.consistency %}<td>{{ report.consistency.frames }}</td>
<td></td><td>{{ report.consistency.mean | counts }}</td>
<td>{{ report.consistency.max | counts }}</td>
{% else %}<td colspan="4">not measured</td>{% endif %}</tr>
<tr><td>|SR - offline SR|</td>{% if report.offline %}<td>{{ report.offline.frames }}</td>
<td>{{ report.offline.exact }}</td><td>{{ report.offline.difference_mean | counts }}</td>
<td>{{ report.offline.difference_max | counts }}</td>
{% else %}<td colspan="4">not run</td>{% endif %}</tr></table>
{% if report.offline %}<p>Offline: <code>{{ report.offline.model }}</code>
{{ report.offline.weights_sha256[:12] }}, {{ report.offline.backend }} on
{{ report.offline.device }};
{% for k, v in report.offline.settings.items() %}{{ k }} {{ v }}{{ ", " if not loop.last }}
{% endfor %}</p>{% endif %}
<p>Size, encoding, frame_id: {% for k, v in report.mismatches.items() %}{{ v }} with wrong {{ k }}
{{ ", " if not loop.last }}{% else %}as due in every compared result{% endfor %}.
camera_info of the result: {% if report.camera_info %}{{ report.camera_info.right }} of
{{ report.camera_info.messages }} right{% for k, v in report.camera_info.wrong.items() %},
{{ k }} wrong in {{ v }}{% endfor %}{% else %}not recorded{% endif %}.</p>
{% for name, gaps in gaps %}{% if gaps %}<h2>Gaps of {{ name }}</h2><table>
<tr><th>after stamp, ns</th><th>seconds</th><th>messages missing</th></tr>
{% for gap in gaps[:listed] %}<tr><td>{{ gap.after }}</td><td>{{ gap.seconds | number(3) }}</td>
<td>{{ gap.missing }}</td></tr>{% endfor %}</table>
{% if gaps | length > listed %}<p>{{ gaps | length - listed }} more in recorded.json.</p>{% endif %}
{% endif %}{% endfor %}
{% if report.node %}<h2>What the node said last</h2><table>
{% for k, v in report.node.items() %}<tr><td>{{ k }}</td><td>{{ v }}</td></tr>{% endfor %}
</table>{% endif %}
</body></html>
"""


def write_page(report: RecordedReport, path: Path) -> None:
    """Write the page of a report; the same report gives the same bytes."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "counts": _counts}
    text = environment.from_string(_PAGE).render(
        report=report,
        cards=_cards(report),
        plots=_plots(report),
        streams=_streams(report),
        spreads=_spreads(report),
        gaps=[("the camera", report.camera.gaps), ("the result", report.sr.gaps)],
        listed=_LISTED_GAPS,
    )
    path.write_text(text, encoding="utf-8")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _counts(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cards(report: RecordedReport) -> list[tuple[str, str, bool]]:
    drops, offline = report.drops, report.offline
    exact = "not run"
    if offline is not None:
        exact = f"{offline.exact} / {offline.frames}"
    latency = report.latency_ms
    return [
        ("camera, Hz", _number(report.camera.rate, 2), False),
        ("result, Hz", _number(report.sr.rate, 2), False),
        ("median latency, ms", _number(latency.p50 if latency else None, 1), False),
        ("99 % latency, ms", _number(latency.p99 if latency else None, 1), False),
        (f"dropped of {drops.frames} frames", str(drops.total), drops.total > 0),
        (
            "bit-exact with the offline run",
            exact,
            offline is not None and offline.exact < offline.frames,
        ),
    ]


def _streams(report: RecordedReport) -> list[tuple]:
    rows = [(report.topics.image, report.camera), (report.topics.sr, report.sr)]
    if report.detections is not None:
        rows.append((report.topics.detections, report.detections.timing))
    return rows


def _spreads(report: RecordedReport) -> list[tuple]:
    rows = [
        ("camera message to result", report.latency_ms),
        ("header stamp to result", report.stamp_latency_ms),
        ("header stamp to camera message", report.clock_offset_ms),
        ("between camera messages", report.camera.interval_ms),
        ("between results", report.sr.interval_ms),
    ]
    if report.detections is not None:
        rows.append(("result to detections", report.detections.after_sr_ms))
        rows.append(("camera message to detections", report.detections.after_camera_ms))
    return rows


def _plots(report: RecordedReport) -> list[tuple[str, str]]:
    frames = report.frames
    begin = min(f.stamp for f in frames)
    plots = []
    if report.latency_ms is not None:
        plots = [
            ("Latency over time", _svg("latency", lambda axes: _draw_latency(axes, frames, begin))),
            ("Latency histogram", _svg("histogram", lambda axes: _draw_histogram(axes, report))),
        ]
    return [*plots, ("Intervals", _svg("intervals", lambda axes: _draw_intervals(axes, report)))]


def _svg(salt: str, draw: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.margins(y=0.18)
    draw(axes)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _latency_ms(frame: FrameResult) -> float | None:
    if frame.camera_logged is None or frame.sr_logged is None:
        return None
    return (frame.sr_logged - frame.camera_logged) / 1e6


def _draw_latency(axes: Axes, frames: tuple[FrameResult, ...], begin: int) -> None:
    answered = [f for f in frames if _latency_ms(f) is not None]
    seconds = [(f.stamp - begin) / 1e9 for f in answered]
    axes.plot(seconds, [_latency_ms(f) for f in answered], ".-", color=_RESULT, lw=0.8, ms=4)
    dropped = [(f.stamp - begin) / 1e9 for f in frames if f.sr_logged is None]
    axes.plot(
        dropped,
        np.zeros(len(dropped)),
        "|",
        color=_BAD,
        ms=14,
        mew=2,
        label=f"dropped ({len(dropped)})",
    )
    axes.set(xlabel="header stamp, s after the first", ylabel="ms")
    axes.set_ylim(bottom=0)
    if dropped:
        axes.legend(**_LEGEND)


def _draw_histogram(axes: Axes, report: RecordedReport) -> None:
    times = [t for t in map(_latency_ms, report.frames) if t is not None]
    axes.hist(times, bins=min(60, max(10, len(times) // 5)), color=_RESULT, alpha=0.8)
    for name in ("p50", "p90", "p99"):
        at = getattr(report.latency_ms, name)
        axes.axvline(at, color="#555555", lw=1, ls="--")
        axes.annotate(name, (at, 1), (3, 0), ("data", "axes fraction"), "offset points", va="top")
    axes.set(xlabel="camera message to result, ms", ylabel="frames")


def _draw_intervals(axes: Axes, report: RecordedReport) -> None:
    begin = min(f.stamp for f in report.frames)
    for name, color, chosen in (
        ("camera", _CAMERA, [f for f in report.frames if f.camera_logged is not None]),
        ("result", _RESULT, [f for f in report.frames if f.sr_logged is not None]),
    ):
        stamps = np.array([f.stamp for f in chosen], np.int64)
        if len(stamps) < 2:
            continue
        intervals = np.diff(stamps) / 1e6
        axes.plot(
            (stamps[1:] - begin) / 1e9, intervals, ".-", color=color, lw=0.8, ms=4, label=name
        )
        if name == "camera":
            limit = GAP * float(np.median(intervals))
            axes.axhline(limit, color=_BAD, lw=1, ls="--", label=f"gap: above {limit:.0f} ms")
    axes.set(xlabel="header stamp, s after the first", ylabel="ms between stamps")
    axes.set_ylim(bottom=0)
    axes.legend(**_LEGEND)
