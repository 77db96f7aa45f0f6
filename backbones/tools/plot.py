"""Draws the training curve of a run: its losses, learning rate and AP, from the metrics.json that training writes."""

import argparse
import json
import os
from typing import Dict, List, Tuple

from ..errors import UserError
from . import picture, run


def read_metrics(folder: str) -> List[Dict[str, float]]:
    """The rows of a run's metrics.json; where a run was resumed, the later row of an iteration counts."""
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        raise UserError(f"no metrics.json in {folder!r}: is it the OUTPUT_DIR of a run?")
    rows: Dict[int, Dict[str, float]] = {}
    with open(path) as f:
        for line in f:
            try:
                row = json.loads(line)
                rows[row["iteration"]] = {**rows.get(row["iteration"], {}), **row}
            except (ValueError, KeyError, TypeError, RecursionError):  # the last line of a run that was cut off
                continue
    if not rows:
        raise UserError(f"{path!r} holds no metrics")
    return [rows[i] for i in sorted(rows)]


def series(rows: List[Dict[str, float]], key: str) -> Tuple[List[int], List[float]]:
    points = [(int(row["iteration"]), row[key]) for row in rows if key in row]
    return [i for i, _ in points], [value for _, value in points]


def plot(folder: str, output: str) -> None:
    """Writes the picture; the upper half shows losses, the lower the learning rate, and AP where it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(folder)
    picture(output, (".png", ".jpg", ".jpeg", ".pdf", ".svg"))
    figure, (losses, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, height_ratios=(2, 1), layout="constrained")
    names = sorted(
        {key for row in rows for key in row if "loss" in key and not key.startswith("val")}, key=lambda key: (key != "total_loss", key)
    )
    for name in names:
        losses.plot(
            *series(rows, name), label=name, linewidth=2 if name == "total_loss" else 1, color="black" if name == "total_loss" else None
        )
    losses.set(ylabel="loss", yscale="log", title=f"Training of {folder}")
    losses.grid(True, which="both", alpha=0.25)
    losses.legend(loc="upper right", fontsize=8)
    below.plot(*series(rows, "lr"), color="tab:gray")
    below.set(xlabel="iteration", ylabel="learning rate")
    below.grid(True, alpha=0.25)
    measured = [key for key in ("bbox/AP", "segm/AP", "keypoints/AP", "panoptic_seg/PQ") if series(rows, key)[0]]
    if measured:
        quality = below.twinx()
        ends = []
        for key in measured:
            x, y = series(rows, key)
            quality.plot(x, y, "o-", label=key)
            ends.append((y[-1], x[-1]))
        for i, (y, x) in enumerate(sorted(ends)):  # the lowest first, each a line above the one before
            quality.annotate(f"{y:.1f}", (x, y), xytext=(-8, 12 * i - 12), textcoords="offset points", ha="right")
        quality.set(ylabel="AP, PQ", ylim=(0, 100))
        quality.legend(loc="lower left", fontsize=8)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backbones.tools.plot", description=__doc__)
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="of a run of train_net.py")
    parser.add_argument("--output", metavar="FILE", help="the picture to write, .png, .jpg, .pdf or .svg (default: OUTPUT_DIR/training.png)")
    args = parser.parse_args()
    output = args.output or os.path.join(args.folder, "training.png")
    plot(args.folder, output)
    print(output)


if __name__ == "__main__":
    run(main)
