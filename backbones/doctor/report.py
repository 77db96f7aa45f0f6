"""The doctor's findings as a page, with charts of the data and training samples."""

import base64
import collections
import html
import io
import os
from typing import Any, Iterator, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import PolygonMasks
from detectron2.utils.env import seed_all_rng

from ..data import images
from ..drawing import SIDE, Mark, colour, draw, mask_of, scale_of
from ..errors import SEVERITIES, Finding, counted
from .data import anchor_generator, training_boxes
from .examination import Examination, words


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _plain(name: Any, most: int = 24) -> str:
    """A class name for matplotlib, which would read dollars as formulas."""
    text = "".join(c if c.isprintable() else "?" for c in str(name))
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def charts(examination: Examination) -> Iterator[tuple[str, str]]:
    """(caption, PNG in base64): charts of the objects of each class and of box sizes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    read = [data for data in examination.data if data.classes]
    if read:
        names = list(dict.fromkeys(name for data in read for name in data.counts()))
        counts = [data.counts() for data in read]
        names.sort(key=lambda name: -counts[0].get(name, 0))
        shown = names[:60]
        figure, axes = plt.subplots(figsize=(min(4 + 0.35 * len(shown) * len(read), 16), 4), layout="constrained")
        for i, (data, count) in enumerate(zip(read, counts)):
            places = np.arange(len(shown)) + (i - (len(read) - 1) / 2) * 0.8 / len(read)
            axes.bar(places, [count.get(name, 0) for name in shown], 0.8 / len(read), label=_plain(data.source.name))
        axes.set_xticks(range(len(shown)), [_plain(name) for name in shown], rotation=90 if len(shown) > 12 else 0)
        axes.set(ylabel="objects")
        if max(max(count.values()) for count in counts) > 20 * max(min(min(count.values()) for count in counts), 1):
            axes.set_yscale("symlog", linthresh=1)
        axes.grid(True, axis="y", alpha=0.25)
        figure.legend(loc="outside upper right", ncols=len(read))
        rest = f" (the {len(shown)} largest of {len(names)})" if len(names) > len(shown) else ""
        yield f"Objects of each class{rest}; crowds are not counted", _png(figure)
    boxes = training_boxes(examination)
    if len(boxes):
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        axes.hist(sides, bins=np.geomspace(max(sides.min(), 0.5) * 0.99, max(sides.max(), 1) * 1.01, 41).tolist(), color="tab:blue")
        generator = anchor_generator(examination)
        if generator is not None:
            sizes = {round(float((cell[2:] - cell[:2]).prod().sqrt()), 1) for level in generator.cell_anchors for cell in level}
            for i, size in enumerate(sorted(sizes)):
                axes.axvline(size, color="tab:red", linewidth=1, label=None if i else "anchor sizes")
            axes.legend()
        axes.set(xscale="log", xlabel="root of the box's area, pixels after resizing", ylabel="boxes of the training data")
        low, high = axes.get_xlim()
        ticks = [2**i for i in range(15) if low <= 2**i <= high]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(True, alpha=0.25)
        yield f"Box sizes as the network sees them (images' shorter side {examination.use.shortest:g})", _png(figure)


def samples(examination: Examination, count: int = 8) -> Iterator[tuple[str, str]]:
    """(caption, PNG in base64): training examples from the mapper, resized, flipped, cropped, with their objects."""
    from detectron2.utils.visualizer import Visualizer
    from PIL import Image

    cfg = examination.cfg
    seed_all_rng(max(cfg.SEED, 0))
    mapper = examination.front.mapper(training=True)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    about = {key: metadata.get(key) for key in ("stuff_classes", "stuff_colors", "ignore_label") if metadata.get(key) is not None}
    classes = [_plain(name) for name in metadata.get("thing_classes") or metadata.get("classes") or ()]
    plain = type(metadata)(**about)  # names of keypoints would cover the picture
    for record in examination.some_records(count):
        name = os.path.basename(str(record.get("file_name")))
        try:
            example = mapper(record)
            image = images.shown(example["image"], cfg.INPUT.FORMAT)
            said = f"{name}: {image.shape[1]}x{image.shape[0]}"
            if "width" in record:
                said += f", of {record['width']}x{record['height']}"
            scale = 1.0
            if "sem_seg" in example:
                scale = scale_of(image, max(1.0, SIDE / min(image.shape[:2])), max(1600, *image.shape[:2]))
                drawer = Visualizer(image, plain, scale=scale)
                image = drawer.draw_sem_seg(example["sem_seg"], area_threshold=0, alpha=0.4).get_image()
            marks: list[Mark] = []
            if "instances" in example:
                marks = _marks(example["instances"].get_fields(), classes, example["image"].shape[1:], scale)
                said += f", {counted(len(example['instances']), 'object')}"
            elif "label" in example or "label" in record:
                label = int(example["label"] if "label" in example else record["label"])
                said += f", {classes[label] if label < len(classes) else label}"
            picture = Image.fromarray(draw(image, marks))
        except Exception as problem:  # of one image; the data section has reported it
            yield f"{name}: {words(problem)}", ""
            continue
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        yield said, base64.b64encode(buffer.getvalue()).decode()


def _marks(fields: dict[str, Any], classes: list[str], shape: Sequence[int], scale: float) -> list[Mark]:
    """The objects of a training example, to draw on its image of ``shape`` times ``scale``."""
    marks = []
    for i, box in enumerate(fields["gt_boxes"].tensor.tolist() if "gt_boxes" in fields else ()):
        number = int(fields["gt_classes"][i])
        mask = points = None
        if isinstance(masks := fields.get("gt_masks"), PolygonMasks):
            mask = mask_of([polygon.tolist() for polygon in masks.polygons[i]], *shape)
        elif masks is not None:
            mask = masks.tensor[i].numpy()
        if "gt_keypoints" in fields:
            points = fields["gt_keypoints"].tensor[i].numpy() * (scale, scale, 1)
        label = classes[number] if number < len(classes) else str(number)
        marks.append(Mark([side * scale for side in box], label, colour(number), mask, points))
    return marks


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h2{border-bottom:1px solid #ccc;margin-top:1.6em}td{padding:.25em .7em .25em 0;vertical-align:top;overflow-wrap:anywhere}
.error{color:#b00020;font-weight:600}.warning{color:#9a6200;font-weight:600}.note{color:#567}.advice{color:#2a6}
.error,.warning,.note{white-space:nowrap}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top;max-width:100%}figure img{max-width:100%}
figcaption{font-size:13px;color:#555;max-width:520px}
pre{background:#f5f5f5;padding:.7em;overflow:auto}"""


def page(title: str, sections: dict[str, list[Finding]], text: dict[str, str], pictures: dict[str, list[tuple[str, str]]]) -> str:
    """One self-contained HTML page; anything from files appears as plain text."""
    e = html.escape
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{e(title)}</title><style>{_STYLE}</style></head><body><h1>{e(title)}</h1><p>{e(totals(sections))}</p>",
    ]
    for name, findings in sections.items():
        parts.append(f"<h2>{e(name)}</h2><table>")
        for f in findings:
            advice = f' <span class="advice">→ {e(printable(f.advice))}</span>' if f.advice else ""
            parts.append(f'<tr><td class="{e(f.severity)}">{e(f.severity)}</td><td>{e(printable(f.message))}{advice}</td></tr>')
        parts.append("</table>")
        if not findings and name not in text:
            parts.append("<p>nothing to report</p>")
        if name in text:
            parts.append(f"<pre>{e(text[name])}</pre>")
        for caption, png in pictures.get(name, ()):
            image = f'<img alt="" src="data:image/png;base64,{png}">' if png else ""
            parts.append(f"<figure>{image}<figcaption>{e(printable(caption))}</figcaption></figure>")
    return "".join(parts) + "</body></html>\n"


def printable(text: str) -> str:
    """Removes line ends, terminal codes and broken characters, which file names may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def totals(sections: dict[str, list[Finding]]) -> str:
    counts = collections.Counter(f.severity for findings in sections.values() for f in findings)
    return ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES)
