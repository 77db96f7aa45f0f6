"""Draws the losses, learning rate and AP of one or several runs, from the metrics.json that training writes."""

import json
import logging
import math
import os
from typing import Sequence

from ..errors import UserError, counted
from ..evaluation.figures import LEADING
from ..files import save_figure
from . import as_is, parser_of, picture, program, run


def read_metrics(folder: str) -> list[dict[str, float]]:
    """The rows of a run's metrics.json. Where a run that starts again writes below earlier rows, those after its iteration are dropped."""
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        raise UserError(f"no metrics.json in {folder!r}: is it the OUTPUT_DIR of a run?")
    rows: dict[int, dict[str, float]] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            found = [*map(_row, f)]
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror}") from error
    latest = -1
    for row in filter(None, found):
        at = int(row["iteration"])
        if at < latest:
            rows = {i: kept for i, kept in rows.items() if i <= at}
        rows.setdefault(at, {}).update(row)
        latest = at
    if not rows:
        raise UserError(f"{path!r} holds no metrics")
    if bad := sum(not row for row in found[:-1]):  # the last line of a killed run is often cut off
        logging.getLogger(__name__).warning(f"{path}: {counted(bad, 'line')} left out: not figures of an iteration")
    return [rows[i] for i in sorted(rows)]


def _row(line: str) -> dict[str, float]:
    """The numbers of a line; empty if it is not a row, such as the last line of a killed run."""
    try:
        row = json.loads(line, parse_int=float)
        row = {key: value for key, value in row.items() if isinstance(value, float)}
        return {**row, "iteration": int(row["iteration"])} if abs(row["iteration"]) < 1 << 53 else {}
    except (ValueError, KeyError, AttributeError, RecursionError):
        return {}


def series(rows: list[dict[str, float]], key: str) -> tuple[list[int], list[float]]:
    points = [(int(row["iteration"]), row[key]) for row in rows if key in row]
    return [i for i, _ in points], [value for _, value in points]


def _measured(rows: list[dict[str, float]]) -> list[str]:
    """The main metrics of the evaluations, the first of them first; of several data sets each has its name before it."""
    keys = sorted({key for row in rows for key in row})
    return [key for figure in LEADING for key in keys if key == figure or key.endswith(f"/{figure}")]


def plot(folder: str, output: str) -> None:
    """Writes the picture of one run: losses above, the learning rate and any measured AP below."""
    rows = read_metrics(folder)
    figure, losses, below = _figure(output, f"Training of {as_is(folder)}")
    every = {key for row in rows for key in row}
    names = {key for key in every if "loss" in key and "/" not in key}  # bbox/AP-blossom is no loss
    for name in sorted(names, key=lambda key: (key != "total_loss", key)):
        style = {"linewidth": 2, "color": "black"} if name == "total_loss" else {"linewidth": 1}
        losses.plot(*series(rows, name), "o" if len(rows) == 1 else "-", label=name, **style)
    for key in sorted(key for key in every if key.startswith("validation/") and key.endswith("total_loss")):
        of = key.removeprefix("validation/").removesuffix("total_loss").strip("/") or "the test data"
        losses.plot(*series(rows, key), "o--", label=f"total_loss of {as_is(of)}", **({"color": "tab:red"} if of == "the test data" else {}))
    losses.legend(loc="best", fontsize=8)
    below.plot(*series(rows, "lr"), color="tab:gray")
    below.set(xlabel="iteration", ylabel="learning rate")
    measured = _measured(rows)
    if measured:
        quality = below.twinx()
        ends = []
        for i, key in enumerate(measured):  # the first is the main metric
            x, y = series(rows, key)
            name = as_is(key) if i else f"{as_is(key)} (leads)"
            (line,) = quality.plot(x, y, "o-", label=name, linewidth=1 if i else 2.5, clip_on=False)
            ends.append((y[-1], x[-1], line.get_color()))
        ends.sort()
        for place, (value, at, colour) in zip(_apart([value for value, _, _ in ends]), ends):
            quality.annotate(
                f"{value:.1f}", (at, place), xytext=(-8, 4), textcoords="offset points", ha="right", fontsize=9, color=colour, fontweight="bold"
            )
        quality.set(ylabel="AP, PQ", ylim=(0, _TOP))
        quality.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)  # not over a curve
    save_figure(figure, output)


_TOP, _LINE = 108.0, 9.0  # of the axis of AP, and what the text of a figure covers of it


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising heights on the axis of AP, moved as little as keeps texts there readable."""
    places: list[float] = []
    for height in heights:
        places.append(max(height if math.isfinite(height) else 0.0, places[-1] + _LINE if places else 0.0))
    highest = _TOP - 1.3 * _LINE
    for i in reversed(range(len(places))):
        places[i] = min(places[i], highest)
        highest = places[i] - _LINE
    return places


def plot_several(folders: Sequence[str], output: str) -> None:
    """Writes the picture of several runs: the total losses above, the first metric that all have below."""
    runs = {folder: read_metrics(folder) for folder in folders}
    first, *others = map(_measured, runs.values())
    common = [key for key in first if all(key in other for other in others)]
    figure, losses, below = _figure(output, f"Training of {len(runs)} runs")
    lines = []
    for rows in runs.values():
        lines += losses.plot(*series(rows, "total_loss"), "o" if len(rows) == 1 else "-")
        line = lines[-1]
        if common:
            x, y = series(rows, common[0])
            below.plot(x, y, "o-", color=line.get_color())
            below.annotate(
                f"{y[-1]:.1f}", (x[-1], y[-1]), xytext=(-6, 5), textcoords="offset points", ha="right", color=line.get_color(), fontsize=8
            )
    below.margins(y=0.2)  # room for the last values
    losses.legend(lines, [*map(as_is, runs)], loc="best", fontsize=8)
    below.set(xlabel="iteration", ylabel=common[0] if common else "no metric that all have")
    save_figure(figure, output)


def _figure(output: str, title: str):
    from matplotlib.figure import Figure

    picture(output, (".png", ".jpg", ".jpeg", ".pdf", ".svg"))
    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.set(ylabel="loss", yscale="log", title=title)
    losses.grid(True, which="both", alpha=0.25)
    below.grid(True, alpha=0.25)
    return figure, losses, below


def main() -> None:
    parser = parser_of(program("plot"), __doc__)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="folder of a run; several runs are compared")
    parser.add_argument(
        "--output", metavar="FILE", help="picture to write, .png, .jpg, .pdf or .svg (default: training.png in the first OUTPUT_DIR)"
    )
    args = parser.parse_args()
    output = args.output or os.path.join(args.folders[0], "training.png")
    if len(args.folders) == 1:
        plot(args.folders[0], output)
    else:
        plot_several(args.folders, output)
    print(output)


if __name__ == "__main__":
    run(main)
