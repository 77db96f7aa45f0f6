"""Shows the rows of a benchmark as tables and as a picture."""

import math
import re
from typing import Any

from .. import zoo
from ..documents import read_json, reading
from ..errors import UserError
from ..files import save_figure
from .detectors import DEPLOYED


def read(path: str) -> list[dict[str, Any]]:
    """Reads the rows of a file that the benchmark wrote."""
    with reading(f"{path!r} is not a file of the benchmark"):
        rows = list(read_json(path)["runs"])
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its runs are not rows")
        return rows


def by_place(rows: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """The rows of each machine and number of threads. Raises UserError for rows that the benchmark does not write."""
    places: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        versions, seconds, threads = row.get("versions"), row.get("seconds", []), row.get("threads")
        machine, python, version, precision, name = words = [
            part.get(key) if isinstance(part, dict) else None
            for part, key in ((row, "machine"), (versions, "python"), (versions, "torch"), (row, "precision"), (row, "name"))
        ]
        times = isinstance(seconds, list) and all(type(s) in (int, float) and 0 < s < math.inf for s in seconds)
        if not all(isinstance(word, str) for word in words) or type(threads) is not int or not times:
            raise UserError(f"the benchmark does not write such a row: {str(row)[:200]!r}", "bad-file")
        places.setdefault((machine, threads, python, version, precision), []).append(row)
    return places


# method of --suite deploy -> (colour, line): a hue per runtime, dashed lines for 16 bits, dotted ones for int8
_LINES = {
    "eager": ("tab:gray", "-"),
    "optimized": ("tab:blue", "-"),
    "compiled": ("tab:cyan", "-"),
    "bfloat16": ("tab:blue", "--"),
    "bfloat16_compiled": ("tab:cyan", "--"),
    "float16": ("tab:purple", "-"),
    "float16_compiled": ("tab:purple", "--"),
    "onnx": ("tab:green", "-"),
    "onnx_int8": ("tab:green", ":"),
    "openvino": ("tab:orange", "-"),
    "openvino_bfloat16": ("tab:orange", "--"),
    "openvino_int8": ("tab:orange", ":"),
}


def deployed(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per image in rows of --suite deploy: size -> method, including eager -> detector."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if match := re.fullmatch(r"deploy/(.+)/(\d{1,6}x\d{1,6})/(\w+)_vs_eager", row["name"]):
            if match[3] in _LINES and len(row.get("seconds", ())) == 2:
                methods = found.setdefault(match[2], {"eager": {}})
                methods.setdefault(match[3], {})[match[1]] = row["seconds"][0]
                methods["eager"].setdefault(match[1], row["seconds"][1])
    return found


def front(points: list[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """The (cost, value, name) entries that nothing cheaper equals in value, by cost."""
    best: list[tuple[float, float, Any]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def plot(path: str, output: str, machine: str = "") -> None:
    """Plots rows of --suite deploy: published AP against milliseconds per image, a line for each way to run, and the best trade-offs.

    They are those of one ``machine``; if it has none, of another.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    places = [place for place in by_place(read(path)).items() if deployed(place[1])]
    if not places:
        raise UserError(f"{path!r} has no rows of --suite deploy", "data")
    of = [place for place in places if place[0][0] == machine] or places
    (machine, threads, *_), rows = max(of, key=lambda place: len(deployed(place[1])))
    sizes = deployed(rows)
    figure = Figure(figsize=(6.5 * len(sizes) + 2, 6), layout="constrained")
    for axes, (size, methods) in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sorted(sizes.items(), key=_area)):
        everything: list[tuple[float, float, Any]] = []
        for method in (name for name in _LINES if name in methods):
            colour, style = _LINES[method]
            aps = {name: zoo.published(DEPLOYED[name]).get("published_ap", {}).get("box") for name in methods[method] if name in DEPLOYED}
            points = [(1e3 * methods[method][name], ap, (name, method)) for name, ap in aps.items() if ap]
            everything += points
            best = front(points)
            axes.plot(
                [p[0] for p in best], [p[1] for p in best], style, color=colour, marker="o", ms=5, lw=1.8, label=method.replace("_", ", ")
            )
            axes.plot([p[0] for p in points], [p[1] for p in points], "o", color=colour, ms=3, alpha=0.5)
        best = front(everything)
        axes.plot([p[0] for p in best], [p[1] for p in best], color="black", lw=7, alpha=0.12, zorder=0, label="nothing faster is better")
        for cost, ap, (name, method) in best:
            words = f"{name}\n{method.replace('_', ', ')}"
            axes.annotate(words, (cost, ap), fontsize=8, xytext=(-8, 4), ha="right", textcoords="offset points")
        axes.set(xscale="log", xlabel=f"milliseconds per image of {size}", ylabel="published box AP (float32)")
        axes.margins(x=0.3, y=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.25)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), fontsize=9, loc="outside right center", handlelength=4)
    figure.suptitle(f"{machine}, {threads} threads", fontsize=10)
    save_figure(figure, output)


def _area(item: tuple[str, Any]) -> int:
    height, _, width = item[0].partition("x")
    return int(height) * int(width)
