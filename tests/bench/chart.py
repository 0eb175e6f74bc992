"""The chart of README from what speed.py and job.py wrote: `chart.py encoders.json jobs.json tests/bench/speed` makes speed.png and speed.svg."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "latent"  # the same figures give the same file
import matplotlib.pyplot as plt

CORPORA = {"short": "short, 14 tokens", "passages": "passages, 250 tokens", "mixed": "mixed, a long tail"}
OURS = {"latent": "#4f9dc0", "latent, workers": "#1f6f8b", "latent, int8": "#f0a35e", "latent, int8, workers": "#d9772b"}
THEIRS = ("#8a8a8a", "#a9a9a9", "#c4c4c4", "#dcdcdc")


def main() -> None:
    encoders, jobs, target = sys.argv[1:]
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharex=True)
    for axis, path, name, title in zip(
        axes, (encoders, jobs), ("encoder", "job"), ("the encoder alone", "the whole job, files to table"), strict=True
    ):
        draw(axis, json.loads(Path(path).read_text()), name, title)
    figure.supxlabel("times as fast as SentenceTransformer.encode with its defaults, on the same cores", fontsize=10)
    figure.tight_layout()
    figure.savefig(f"{target}.png", dpi=160)
    figure.savefig(f"{target}.svg", metadata={"Date": None})


def draw(axis: plt.Axes, rows: list[dict[str, object]], key: str, title: str) -> None:
    """One group of bars a corpus, one bar a contestant; the rival that all are measured against first."""
    names = list(dict.fromkeys(str(row[key]) for row in rows))
    theirs = iter(THEIRS)
    colours = {name: OURS.get(name) or next(theirs) for name in names}
    height = 0.84 / len(names)
    for group, corpus in enumerate(CORPORA):
        for i, row in enumerate(row for row in rows if row["corpus"] == corpus):
            at, ratio = group + (i - (len(names) - 1) / 2) * height, float(str(row["ratio"]))
            axis.barh(at, ratio, height * 0.92, color=colours[str(row[key])], label=str(row[key]) if group == 0 else None)
            axis.text(ratio + 0.04, at, f"{ratio:.2f}", va="center", fontsize=7.5, color="#333333")
    axis.axvline(1, color="#555555", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(CORPORA)), list(CORPORA.values()))
    axis.invert_yaxis()
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.07), ncols=4)


if __name__ == "__main__":
    main()
