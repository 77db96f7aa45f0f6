"""Reading an annotation file as large as COCO's: processor time and memory, each measured in its own process."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, Iterator

import numpy as np
from detectron2.data.datasets.coco import load_coco_json

from .. import timing
from ..data.coco import Reader
from ..data.packed import Packed
from ..data.sources import Source, Use

_LINKS = 50_000  # links to one file: file systems limit them


def write(folder: str, images: int) -> tuple[str, str]:
    """Writes an annotation file and a folder of links to one picture: about seven objects each, 80 classes, polygons of 28 numbers."""
    from PIL import Image

    root = os.path.join(folder, "images")
    os.mkdir(root)
    rng, first = np.random.default_rng(0), ""
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(images):
        name = f"{i + 1:012d}.jpg"
        if i % _LINKS == 0:
            first = os.path.join(root, name)
            Image.new("RGB", (640, 480), (90, 120, 60)).save(first)
        else:
            os.link(first, os.path.join(root, name))
        about = {"license": 1, "coco_url": f"http://images/{name}", "date_captured": "2013-11-14 17:02:52", "flickr_url": f"http://f/{name}"}
        entries.append({"id": i + 1, "file_name": name, "width": 640, "height": 480, **about})
        for _ in range(rng.choice((1, 3, 5, 7, 9, 14, 12))):
            x, y, w, h = rng.uniform((0, 0, 5, 5), (500, 380, 120, 90)).round(2).tolist()
            polygon = (rng.random((14, 2)) * (w, h) + (x, y)).round(2).flatten().tolist()
            own = {"bbox": [x, y, w, h], "area": 0.6 * w * h, "iscrowd": 0, "segmentation": [polygon]}
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": int(rng.integers(1, 81)), **own})
    categories = [{"id": i, "name": f"c{i}", "supercategory": "s"} for i in range(1, 81)]
    path = os.path.join(folder, "annotations.json")
    with open(path, "w") as f:
        json.dump({"images": entries, "annotations": annotations, "categories": categories}, f)
    return path, root


def records(way: str, path: str, root: str) -> list[dict[str, Any]]:
    """detectron2's records of a file with boxes or polygons, read and checked as in training, or by detectron2's own function."""
    if way == "detectron2":  # which always reads polygons
        with contextlib.redirect_stdout(io.StringIO()):
            return load_coco_json(path, root)
    return Reader(Source("benchmark", path, root), Use(masks=way == "polygons"))()


def cost(way: str, path: str, root: str) -> tuple[float, float]:
    """(seconds of processor time, peak bytes of memory of this process) of `records`; 0 bytes if the system does not say."""
    begun = time.process_time()
    kept = records(way, path, root)
    taken = time.process_time() - begun
    del kept
    with contextlib.suppress(OSError), open("/proc/self/status") as f:  # getrusage would count the parent's pages too
        most = re.search(r"VmHWM:\s+(\d+) kB", f.read())
        return taken, 1024.0 * int(most[1]) if most else 0.0
    return taken, 0.0


def packed(way: str, path: str, root: str) -> dict[str, float]:
    """Bytes of packed records: per image without objects, and per object."""
    whole = records(way, path, root)
    objects = sum(len(record["annotations"]) for record in whole)
    sizes = []
    for some in (whole, [{**record, "annotations": []} for record in whole]):
        held = Packed(some)
        sizes.append(os.path.getsize(held.path))
        held.forget()
    return {"image": round(sizes[1] / len(whole), 1), "object": round((sizes[0] - sizes[1]) / objects, 1)}


def alone(function: Callable, *args: Any) -> Any:
    """Runs a function in its own process and returns the result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def rows(path: str, root: str, images: int, rounds: int, run: Callable = alone) -> Iterator[dict[str, Any]]:
    """Boxes, polygons and detectron2 in turn; and the sizes of packed records."""
    costs: dict[str, list[tuple[float, float]]] = {"boxes": [], "polygons": [], "detectron2": []}
    for i in range(rounds):
        for way in list(costs)[:: 1 if i % 2 else -1]:
            costs[way].append(run(cost, way, path, root))
    times = {way: [seconds for seconds, _ in values] for way, values in costs.items()}
    memory = {way: statistics.median(most for _, most in values) for way, values in costs.items()}
    about = timing.about()
    for row, way in zip(timing.rows_of(f"data/reading/{images}_images", times, "detectron2", **about), costs):
        yield {**row, "bytes": [memory[way], memory["detectron2"]]}
    for way in ("boxes", "polygons"):
        yield {"name": f"data/packed/{images}_images/{way}", "bytes_of": run(packed, way, path, root), **about}
