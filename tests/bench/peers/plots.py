"""Draws the record with the peers' Python (matplotlib): ratios to each peer, shares of the roofs. Same record, same bytes."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

COLOURS = {"llama.cpp": "#4c78a8", "OpenVINO": "#f58518", "torch": "#9d9da1"}
SMALLER_IS_BETTER = ("s", "MiB")


def ratios(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """(label, peer -> how many times better ferrum is)."""
    found = []
    for row in rows:
        medians = {name: statistics.median(values) for name, values in row["samples"].items() if values}
        if "ferrum" not in medians or len(medians) < 2:
            continue
        ours = medians.pop("ferrum")
        better = {n: v / ours if row["unit"] in SMALLER_IS_BETTER else ours / v for n, v in medians.items()}
        found.append((f"{row['line']}, {row['format']}", better))
    return found


def shares(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [
        (f"{row['line']}, {row['format']} ({fact})", value)
        for row in rows
        for fact, value in row["facts"].items()
        if fact in ("of bandwidth", "of peak")
    ]


def main(source: Path, folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "ferrum", "svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}
    record = json.loads(source.read_text())
    for shape in dict.fromkeys(row["shape"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["shape"] == shape]
        title = f"{shape}: ferrum against its peers (right of 1: ferrum is ahead)"
        _ratio_plot(ratios(rows), folder / f"{shape}-ratios.svg", title)
        _share_plot(shares(rows), folder / f"{shape}-roofs.svg", f"{shape}: share of the machine's measured limit")


def _ratio_plot(bars: list[tuple[str, dict[str, float]]], path: Path, title: str) -> None:
    if not bars:
        return
    figure, axes = _figure(len(bars), title)
    seen = set()
    for i, (_, peers) in enumerate(bars):
        height = 0.8 / len(peers)
        for j, (name, value) in enumerate(peers.items()):
            at = i - 0.4 + height * (j + 0.5)
            axes.barh(at, value, height, color=COLOURS[name], label=None if name in seen else name)
            axes.text(value, at, f" {value:.2f}", va="center", fontsize=6)
            seen.add(name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.legend(loc="best", fontsize=7)
    _finish(figure, axes, [label for label, _ in bars], path)


def _share_plot(bars: list[tuple[str, float]], path: Path, title: str) -> None:
    if not bars:
        return
    figure, axes = _figure(len(bars), title)
    for i, (_, value) in enumerate(bars):
        axes.barh(i, 100 * value, 0.7, color="#54a24b")
        axes.text(100 * value, i, f" {100 * value:.0f} %", va="center", fontsize=6)
    axes.axvline(100, color="black", linewidth=0.8)
    _finish(figure, axes, [label for label, _ in bars], path)


def _figure(count: int, title: str) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 0.8 + 0.24 * count))
    axes.set_title(title, fontsize=9)
    return figure, axes


def _finish(figure: Any, axes: Any, labels: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
