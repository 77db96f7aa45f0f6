"""What the rows of a benchmark say: as tables, and as a picture."""

import math
import re
from typing import Any, Callable

from .. import zoo
from ..documents import read_json, reading
from ..errors import UserError
from .detectors import FASTER


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file that the benchmark wrote."""
    with reading(f"{path!r} is no file of the benchmark"):
        rows = list(read_json(path)["runs"])
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its runs are no rows")
        return rows


def by_place(rows: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """The rows of each machine and number of threads. Raises UserError for what the benchmark does not write."""
    places: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        versions, seconds, threads = row.get("versions"), row.get("seconds", []), row.get("threads")
        machine, python, version, precision, name = words = [
            part.get(key) if isinstance(part, dict) else None
            for part, key in ((row, "machine"), (versions, "python"), (versions, "torch"), (row, "precision"), (row, "name"))
        ]
        times = isinstance(seconds, list) and all(type(s) in (int, float) and 0 < s < math.inf for s in seconds)
        if not all(isinstance(word, str) for word in words) or type(threads) is not int or not times:
            raise UserError(f"a row is not as the benchmark writes it: {str(row)[:200]!r}", "bad-file")
        places.setdefault((machine, threads, python, version, precision), []).append(row)
    return places


def plot(path: str, output: str, gmacs: Callable[[str], float]) -> None:
    """Latency of optimized and eager detectors against their published AP, and against ``gmacs``, a config's name's backbone's operations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    (machine, threads, *_), rows = max(by_place(read(path)).items(), key=lambda item: len(item[1]), default=(("", 0), []))
    points = []
    for row in rows:
        match = re.fullmatch(r"inference/(.+)/(\d{1,6}x\d{1,6})/optimized_vs_eager", row["name"])
        if match and match[1] in FASTER and len(row.get("seconds", ())) == 2:
            ap = zoo.published(FASTER[match[1]]).get("published_ap", {}).get("box")
            points.append((match[1], match[2], row["seconds"], ap))
    if not points:
        raise UserError(f"{path!r} has no rows of --suite inference", "data")
    work = {name: gmacs(FASTER[name]) for name in {p[0] for p in points}}
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    largest = max((p[1] for p in points), key=lambda size: int(size.partition("x")[0]))
    for size, marker in zip(sorted({p[1] for p in points}), "os^"):
        chosen = [p for p in points if p[1] == size]
        for index, (label, colour) in enumerate((("optimized", "tab:blue"), ("eager", "tab:gray"))):
            values = [(p[2][index] * 1e3, p[3], work[p[0]], p[0]) for p in chosen]
            for axis, x, y in ((left, 0, 1), (right, 2, 0)):
                shown = [v for v in values if v[y]]
                axis.scatter([v[x] for v in shown], [v[y] for v in shown], marker=marker, color=colour, label=f"{label}, {size}")
            if index == 0 and size == largest:
                for latency, ap, operations, name in values:
                    above = any(ap and other[1] and 0 < other[1] - ap < 0.5 for other in values)
                    if ap:
                        left.annotate(name, (latency, ap), fontsize=7, xytext=(6, -8 if above else 4), textcoords="offset points")
                    right.annotate(name, (operations, latency), fontsize=7, xytext=(-6, 3), ha="right", textcoords="offset points")
    left.set(xlabel="milliseconds an image", ylabel="published box AP")
    right.set(xlabel="multiply-adds / 1e9 of the bare backbone at 800x1344", ylabel="milliseconds an image")
    for axis, set_scale in ((left.xaxis, left.set_xscale), (right.yaxis, right.set_yscale)):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:.0f}")
    right.set_xlim(left=-35)
    right.set_xticks([tick for tick in right.get_xticks() if tick >= 0])
    for axis in (left, right):
        axis.legend(fontsize=7)
    figure.suptitle(f"Faster R-CNN on {machine}, {threads} threads", fontsize=9)
    figure.savefig(output, dpi=110)
