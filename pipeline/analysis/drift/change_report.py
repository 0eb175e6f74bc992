"""The change report: a `Drift` as one HTML file that needs nothing beside it, for whoever was not there."""

from __future__ import annotations

import base64
import datetime as dt
import io
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np

from latent.analysis.drift.compare_versions import Drift
from latent.analysis.drift.statistics import FALSE_ALARMS, MATTERS
from latent.analysis.projection.coordinates import LEAST, Plane
from latent.analysis.projection.map_table import HUES, NOISE_COLOUR
from latent.errors import ConfigError
from latent.outputs import MARK, require_replaceable
from latent.rendering import printable_line

LEGEND = len(HUES) - 1  # topics with a colour of their own: those that changed most
TOPICS = 30  # told of
SEED = 0


def save_report(drift: Drift, table: str, file: Path, zone: dt.tzinfo = dt.UTC) -> None:
    """Write it. Raises ConfigError where what draws the map is missing, or another program's file is there."""
    require_replaceable(file, "--report")
    page = jinja2.Environment(autoescape=True).from_string(
        (files("latent.analysis.drift") / "change_report.html").read_text("utf-8")
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    told = page.render(
        mark=MARK,
        drift=drift,
        table=table,
        when=f"{dt.datetime.now(zone):%Y-%m-%d %H:%M %Z}",
        false_alarms=FALSE_ALARMS,
        matters=MATTERS,
        topics=TOPICS,
        widest=max(max(topic.before_share, topic.now_share) for topic in drift.topics),
        picture=base64.b64encode(_picture(drift)).decode(),
    )
    file.write_text(told, encoding="utf-8")


def _picture(drift: Drift) -> bytes:
    """Before and now on one plane, side by side, as PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a change report needs matplotlib: run 'make space', or pip install 'latent[space]'") from None
    seen = drift.points
    shown = [seen.before, seen.now, seen.came]
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    before, now = figure.subplots(1, 2, sharex=True, sharey=True)
    if sum(map(len, shown)) >= LEAST:
        plane = Plane(np.concatenate(shown), SEED).layout.points
        then, today, came = np.split(plane, np.cumsum([len(each) for each in shown[:2]]))
        for axes, points, topics in ((before, then, seen.before_topics), (now, today, seen.now_topics)):
            colours = [HUES[each] if each < LEGEND else NOISE_COLOUR for each in topics.tolist()]
            axes.scatter(*points.T, s=np.clip(20_000 / len(points), 4, 25), c=colours, linewidths=0)
        if len(seen.came):
            now.scatter(*came.T, s=16, facecolors="none", edgecolors="black", linewidths=0.8, label="came")
        for place, topic in enumerate(drift.topics[:LEGEND]):
            now.scatter([], [], color=HUES[place], label=f" {printable_line(topic.label)}")  # one that begins with _ is left out
        for text in figure.legend(loc="outside lower center", ncols=4, frameon=False, markerscale=1.5).get_texts():
            text.set_parse_math(False)
        middle, reach = (plane.max(0) + plane.min(0)) / 2, np.ptp(plane, axis=0).max() * 0.52
        now.set(
            xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach)
        )  # a square, as the axes are
    for axes, title in ((before, f"version {drift.since}"), (now, f"version {drift.table_version}")):
        axes.set_title(title, loc="left")
        axes.set_aspect("equal")
        axes.set_axis_off()
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    return image.getvalue()
