"""Finds objects in images with a file that `backbones export` wrote. Prints a line of JSON for each image.

python run_exported.py detector.onnx street.jpg other.png --confidence-threshold 0.5 --output found

This script is all the code that the exported file next to it needs. It takes Python 3.8 or newer, numpy and Pillow; for .onnx also onnxruntime,
for .xml openvino (and the .bin next to it), for .ts torch and torchvision. `Detector` is the same for use in code. The file's metadata describe
its inputs and outputs, as JSON under the name "backbones": `Detector.about`. Its "contract" says in words what this code does.
"""

from __future__ import annotations  # for Python 3.8

import argparse
import json
import os
import sys
from collections import Counter
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TO_YUV = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]  # BT.601
# what makes an image upright, by the value of its EXIF tag, from 2 on
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class Unusable(RuntimeError):
    """A line that says why a file cannot be loaded, or run on an input; ``package`` is what to install for it."""

    def __init__(self, said: str, reason: BaseException, package: str = ""):
        super().__init__(f"{said}: {' '.join(str(reason).split())[:200] or type(reason).__name__}")
        self.package = package


def load(path: str, threads: int = 0) -> tuple[Callable[[np.ndarray], list[np.ndarray]], dict[str, Any]]:
    """Returns (a function from an image of `prepared` to the file's outputs, the file's description). 0 threads: the runtime chooses.

    Both this function and the returned one raise `Unusable`.
    """
    try:
        run, about = LOADERS[os.path.splitext(path)[1]](path, threads)
        if missing := {"fields", "part", "input_format"} - set(about):
            raise ValueError(f"it does not say {', '.join(sorted(missing))}")
    except ImportError as error:
        package = error.name or "its runtime"
        raise Unusable(f"{path!r} needs a package that is not installed, pip install {package}", error, package) from error
    except Exception as error:  # each runtime raises its own kind
        raise Unusable(f"{path!r} was not exported by backbones, or needs another version of its runtime", error) from error

    def call(x: np.ndarray) -> list[np.ndarray]:
        try:
            return run(x)
        except Exception as error:
            raise Unusable(f"{path!r} cannot be run on an input of {x.shape}", error) from error

    return call, about


def _onnx(path: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    return lambda x: session.run(None, {"image": x}), json.loads(session.get_modelmeta().custom_metadata_map["backbones"])


def _openvino(path: str, threads: int):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    about = json.loads(model.get_rt_info("backbones").astype(str))
    hint = {"bfloat16": "bf16", "float16": "f16"}.get(about.get("precision", ""), "f32")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint})
    return lambda x: [np.array(value) for value in compiled([x]).values()], about  # copies: the next call reuses their memory


def _torchscript(path: str, threads: int):
    import torch
    import torchvision  # noqa: F401  the file uses its operators

    files = {"backbones.json": ""}
    module = torch.jit.load(path, map_location="cpu", _extra_files=files)
    if threads:
        torch.set_num_threads(threads)

    def call(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in module(torch.from_numpy(x))]

    return call, json.loads(files["backbones.json"])


LOADERS = {".onnx": _onnx, ".xml": _openvino, ".ts": _torchscript}


def read(path: str, about: dict[str, Any]) -> np.ndarray:
    """Reads an image file as (H, W, 3) RGB uint8: rotated by its EXIF tag, with 8 bits, as in training.

    Raises ValueError if it has too many pixels, or if values have more bits and no range is given that becomes 0 to 255.
    """
    reading = about.get("reading", {})
    most = reading.get("max_pixels", 0)
    if most:
        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit
    with Image.open(path) as opened:
        if most and opened.width * opened.height > most:
            raise ValueError(f"it has {opened.width}x{opened.height} pixels, more than INPUT.MAX_PIXELS {most}")
        pictures = pictures_in(path)
        if pictures > 1:
            print(f"{path}: using the first of {pictures} pictures in it", file=sys.stderr)
        image = upright(opened) if reading.get("exif", "turn") == "turn" else opened
        if image.mode[0] in "IF":  # more than 8 bits
            values = np.nan_to_num(np.asarray(image, np.float32))
            if not reading.get("value_range"):
                said = f"its values have more than 8 bits and range from {values.min():g} to {values.max():g}"
                low, high = values.min(), values.max()
                if low == high or 0 <= low and 1 < high <= 65535:
                    low, high = 0, 65535
                raise ValueError(f"{said}: give the range that becomes 0 to 255, such as --value-range {low:g} {high:g}")
            low, high = reading["value_range"]
            image = Image.fromarray(((values - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF tag. A damaged tag is ignored, as in training; other tags do not matter, however damaged they are."""
    turns: dict[Any, str] = dict(enumerate(TURNS, 2))
    try:
        turn = turns.get(image.getexif().get(0x0112))
    except Exception:  # Pillow raises anything for a damaged file
        turn = None
    return image.transpose(getattr(Image, turn)) if turn else image


def pictures_in(path: str) -> int:
    """How many pictures a file holds; 1 for a photo with its previews, and for a file that is damaged behind its first picture."""
    try:
        with Image.open(path) as image:  # counting moves the place at which it is read
            return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:
        return 1


def sides(height: int, width: int, about: dict[str, Any]) -> tuple[int, int]:
    """The resized (height, width): the shorter side "min_size", the longer one at most "max_size". "min_size" 0: unchanged."""
    if not about["min_size"]:
        return height, width
    scale = about["min_size"] / min(height, width)
    new = (about["min_size"], scale * width) if height < width else (scale * height, about["min_size"])
    if max(new) > about["max_size"]:
        scale = about["max_size"] / max(new)
        new = new[0] * scale, new[1] * scale
    return max(int(new[0] + 0.5), 1), max(int(new[1] + 0.5), 1)


def weights(at: np.ndarray, size: int, cubic: bool = False, repeat: bool = True) -> np.ndarray:
    """(N, size): the weight of each of ``size`` cells at (N,) places between them; outside, the last cell repeats, or the weight is 0."""
    low = np.floor(at)
    t = at - low
    if cubic:  # torch's kernel, with -0.75
        far = [((-0.75 * x + 3.75) * x - 6) * x + 3 for x in (t + 1, 2 - t)]
        near = [(1.25 * x - 2.25) * x * x + 1 for x in (t, 1 - t)]
        taps = [(-1, far[0]), (0, near[0]), (1, near[1]), (2, far[1])]
    else:
        taps = [(0, 1 - t), (1, t)]
    result = np.zeros((len(at), size))
    for offset, share in taps:
        place = (low + offset).astype(int)
        inside = (place >= 0) & (place < size)
        np.add.at(result, (np.arange(len(at)), place.clip(0, size - 1)), share if repeat else share * inside)
    return result


def scaled(maps: np.ndarray, height: int, width: int, cubic: bool = False) -> np.ndarray:
    """Maps (..., h, w) as (..., height, width), interpolated."""
    rows, columns = (weights((np.arange(new) + 0.5) * (old / new) - 0.5, old, cubic) for new, old in zip((height, width), maps.shape[-2:]))
    return rows @ maps @ columns.T


def prepared(image: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Turns an image (H, W, 3) RGB uint8 into the file's input, (C, H', W') float32, 0 to 255, in its "input_format"; for a backbone a batch.

    With "preprocessing" it is the image itself.
    """
    if about.get("preprocessing"):
        return np.array(image, order="C")  # a copy: torch warns of arrays that cannot be written, as Pillow's are
    sized = Image.fromarray(np.ascontiguousarray(image))
    yuv = about["input_format"] == "YUV-BT.601"
    if about["crop"]:  # a classifier's
        short, side = min(sized.size), about["crop"]
        sized = sized.resize([int(about["resize"] * v / short) for v in sized.size], Image.Resampling.BILINEAR)
        left, upper = (int(round((v - side) / 2)) for v in sized.size)
        sized = sized.crop((left, upper, left + side, upper + side))
    new = sized.size[::-1] if about["crop"] else sides(image.shape[0], image.shape[1], about)
    if about["input_format"] == "L":
        sized = sized.convert("L")
    if not yuv:
        sized = sized.resize(new[::-1], Image.Resampling.BILINEAR)
    x = np.atleast_3d(np.asarray(sized)).transpose(2, 0, 1)
    if yuv:  # its values are not integers
        x = scaled(np.einsum("ij,jhw->ihw", TO_YUV, x / 255.0), *new)
    elif about["input_format"] == "BGR":
        x = x[::-1]
    x = np.ascontiguousarray(x, np.float32)
    if about["part"] == "detector":
        return x
    step = max(about["size_divisibility"], 1)
    return np.pad(x, ((0, 0), (0, -x.shape[1] % step), (0, -x.shape[2] % step)))[None]


def stacked(inputs: Sequence[np.ndarray], batch: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """The calls of a file that takes ``batch`` images for all ``inputs``: indices of inputs of one shape, and these as (batch, C, H, W).

    If there are fewer, the last is repeated. 0: the file takes one, without a batch axis.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, x in enumerate(inputs):
        shapes.setdefault(x.shape, []).append(place)
    for places in shapes.values():
        for first in range(0, len(places), batch or 1):
            chosen = places[first : first + (batch or 1)]
            filled = chosen + chosen[-1:] * (batch - len(chosen))
            yield chosen, np.stack([inputs[place] for place in filled]) if batch else inputs[chosen[0]]


def separated(found: dict[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """Splits a file's outputs by the images of its batch."""
    if not batch:
        return [found]
    ends = np.cumsum(found["counts"])[:-1] if "counts" in found else ()
    parts = {
        name: np.split(value, ends) if "counts" in found and name != "sem_seg" else list(value)
        for name, value in found.items()
        if name != "counts"
    }
    return [{name: part[i] for name, part in parts.items()} for i in range(batch)]


def seen(x: np.ndarray, about: dict[str, Any]) -> Sequence[int]:
    """(height, width) of an image of `prepared`."""
    return x.shape[:2] if about.get("preprocessing") else x.shape[1:]


def results(call: Callable[[np.ndarray], list[np.ndarray]], about: dict[str, Any], inputs: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The outputs of a file, by name, for each of the inputs of `prepared`."""
    batch = about.get("batch", 0)
    found: dict[int, dict[str, np.ndarray]] = {}
    for places, x in stacked(inputs, batch):
        found.update(zip(places, separated(dict(zip(about["fields"], call(x))), batch)))
    return [found[place] for place in range(len(inputs))]


def pasted(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pastes a mask (M, M) of a box into an image, (height, width) of bool."""
    result = np.zeros((height, width), bool)
    x0, y0 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(box[2:]).astype(int) + 1, (width, height))
    rows, columns = (
        weights((np.arange(first, last) + 0.5 - box[axis]) / (box[axis + 2] - box[axis]) * size - 0.5, size, repeat=False)
        for first, last, axis, size in ((y0, y1, 1, mask.shape[0]), (x0, x1, 0, mask.shape[1]))
    )
    result[y0:y1, x0:x1] = rows @ mask @ columns.T >= 0.5
    return result


def peaks(heatmaps: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(K, 3): x, y and score of the maximum of each of (K, M, M) maps within a box, in the box's unit."""
    side = np.maximum(box[2:] - box[:2], 1)
    width, height = np.ceil(side).astype(int)
    maps = scaled(heatmaps, height, width, cubic=True).reshape(len(heatmaps), -1)
    place, highest = maps.argmax(axis=1), maps.max(axis=1)
    xy = (np.stack((place % width, place // width), axis=1) + 0.5) * (side / (width, height)) + box[:2]
    scores = 1 / np.exp(heatmaps.reshape(len(heatmaps), -1) - highest[:, None]).sum(axis=1)
    return np.column_stack((xy, scores)).astype(np.float32)


def finished(found: dict[str, np.ndarray], seen: Sequence[int], size: Sequence[int], threshold: float = 0.0) -> dict[str, np.ndarray]:
    """Scales a file's results from the image as ``seen``, (height, width), to pixels of the image of ``size``.

    "boxes" or "proposals" (N, 4) are left, top, right, bottom; "scores" and "classes" (N,); "masks" (N, height, width) of bool; "keypoints"
    (N, K, 3) are x, y, score; "sem_seg" (classes, height, width). Objects below the threshold are left out, but for the best: masks of the
    image's size take time and memory.
    """
    (height, width), result = size, dict(found)
    scale = np.array((width / seen[1], height / seen[0]), np.float32)
    name = next((name for name in ("boxes", "proposals") if name in found), "")
    if name:
        boxes = np.clip(found[name] * np.tile(scale, 2), 0, np.array((width, height) * 2, np.float32))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if name == "boxes" and kept.any():
            kept &= found["scores"] >= min(threshold, found["scores"][kept].max())
        result.update({key: value[kept] for key, value in found.items() if key != "sem_seg"})
        result[name] = boxes = boxes[kept]
    if "masks" in found:
        masks = [pasted(mask[0], box, height, width) for mask, box in zip(result["masks"], boxes)]
        result["masks"] = np.stack(masks) if masks else np.zeros((0, height, width), bool)
    if "heatmaps" in found:
        maps = result.pop("heatmaps")
        points = [peaks(of_box, box) for of_box, box in zip(maps, found["boxes"][kept])]
        result["keypoints"] = np.stack(points) * (*scale, np.float32(1)) if points else np.zeros((0, maps.shape[1], 3), np.float32)
    if "sem_seg" in found:
        result["sem_seg"] = scaled(found["sem_seg"][:, : seen[0], : seen[1]], height, width).astype(np.float32)
    return result


class Detector:
    """An exported file; ``about`` is its description."""

    def __init__(self, path: str, threads: int = 0):
        self._call, self.about = load(path, threads)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Results for an image (H, W, 3) RGB uint8, in its pixels: see `finished`. A backbone gives features, a classifier scores."""
        return self.all([image])[0]

    def all(self, images: Sequence[np.ndarray], threshold: float = 0.0) -> list[dict[str, np.ndarray]]:
        """Results for each of several images, see `finished`. A file with a batch gets images of the same resized size together."""
        inputs = [prepared(image, self.about) for image in images]
        found = results(self._call, self.about, inputs)
        if self.about["part"] == "backbone":
            return found
        return [finished(one, seen(x, self.about), image.shape[:2], threshold) for one, x, image in zip(found, inputs, images)]

    def name(self, label: int, kind: str = "classes") -> str:
        """The name of a class, or of one of "stuff"; its number if the file has no name."""
        names = self.about.get(kind) or ()
        return names[label] if label < len(names) else str(label)


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's uncompressed run-length encoding (RLE): how many pixels are 0, then 1, then 0, ..., column by column."""
    pixels = np.concatenate(([False], mask.T.ravel()))
    ends = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate(([0], ends, [mask.size]))).tolist()}


def described(found: dict[str, np.ndarray], detector: Detector, threshold: float) -> dict[str, Any]:
    """The results, for JSON."""
    if "sem_seg" in found:
        labels, counts = np.unique(found["sem_seg"].argmax(axis=0), return_counts=True)
        areas = {"pixels": {detector.name(int(label), "stuff"): int(count) for label, count in zip(labels, counts)}}
    else:
        areas = {}
    if "boxes" not in found:
        if detector.about["part"] == "backbone":
            return {name: list(value.shape) for name, value in found.items()}
        if "proposals" in found:
            return {"proposals": found["proposals"].round(2).tolist()}
        order = np.argsort(-found["scores"].ravel(), kind="stable")[:5]
        return {"scores": {detector.name(int(i)): round(float(found["scores"].ravel()[i]), 4) for i in order}}
    objects = []
    for i in np.flatnonzero(found["scores"] >= threshold):
        one = {"class": detector.name(int(found["classes"][i])), "score": round(float(found["scores"][i]), 4)}
        one["box"] = [round(float(v), 2) for v in found["boxes"][i]]
        if "keypoints" in found:
            one["keypoints"] = [[round(float(v), 2) for v in point] for point in found["keypoints"][i]]
        if "masks" in found:
            one["mask"] = runs(found["masks"][i])
        objects.append(one)
    return {"objects": objects, **areas}


def as_drawn(text: str, font: Any) -> str:
    """A text with ? for letters that a font lacks."""
    try:
        missing = bytes(font.getmask("\uffff"))  # no letter
        return "".join("?" if not letter.isascii() and bytes(font.getmask(letter)) == missing else letter for letter in text)
    except UnicodeError:  # an old Pillow's own font has Latin letters alone
        return text.encode("latin-1", "replace").decode("latin-1")


def drawn(image: np.ndarray, found: dict[str, np.ndarray], detector: Detector, threshold: float) -> Image.Image:
    """Draws a picture of the results: objects, proposals, the class of each pixel, or a classifier's best class."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(picture)

    def write(corner: tuple[float, float], label: int, score: float, colour: str) -> None:
        text = as_drawn(f"{detector.name(label)} {score:.2f}", pen.getfont())
        place = pen.textbbox(corner, text)
        pen.rectangle(place, fill=colour)
        pen.text(corner, text, fill="white")

    labels = found["sem_seg"].argmax(axis=0) if "sem_seg" in found else np.empty(0, int)
    for label in np.unique(labels):
        picture.paste(COLOURS[int(label) % len(COLOURS)], mask=Image.fromarray((labels == label).astype(np.uint8) * 90))
    for box in found.get("proposals", ()):
        pen.rectangle(box.tolist(), outline=COLOURS[0])
    if "scores" in found and "boxes" not in found:
        best = int(found["scores"].argmax())
        write((2, 2), best, float(found["scores"].ravel()[best]), COLOURS[best % len(COLOURS)])
    for i in np.flatnonzero(found["scores"] >= threshold) if "boxes" in found else ():
        colour, box = COLOURS[int(found["classes"][i]) % len(COLOURS)], found["boxes"][i].tolist()
        if "masks" in found:
            picture.paste(colour, mask=Image.fromarray(found["masks"][i].astype(np.uint8) * 110))
        pen.rectangle(box, outline=colour, width=2)
        for x, y, _ in found["keypoints"][i] if "keypoints" in found else ():
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        write((box[0] + 2, max(box[1] - 11, 0)), int(found["classes"][i]), float(found["scores"][i]), colour)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the exported file: .onnx, .xml or .ts")
    parser.add_argument("images", nargs="+", help="image files")
    flags = ("--confidence-threshold", "--conf-threshold", "--threshold")
    parser.add_argument(*flags, type=float, default=0.5, metavar="SCORE", help="lowest score to report (default: %(default)s)")
    parser.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of more than 8 bits: what becomes 0 and 255")
    parser.add_argument("--output", "--draw", metavar="FOLDER", help="folder for pictures of the results")
    args = parser.parse_args()
    if not os.path.isfile(args.file):
        sys.exit(f"error: {args.file!r} does not exist")
    if os.path.splitext(args.file)[1] not in LOADERS:
        sys.exit(f"error: {args.file!r} does not end in {', '.join(LOADERS)}")
    if args.value_range and not args.value_range[0] < args.value_range[1]:
        sys.exit(f"error: --value-range {args.value_range[0]:g} {args.value_range[1]:g}: the first must be less than the second")
    if not 0 <= args.confidence_threshold <= 1:
        sys.exit(f"error: --confidence-threshold {args.confidence_threshold:g} must be from 0 to 1, such as 0.5")
    if args.output and os.path.isfile(args.output):
        sys.exit(f"error: --output {args.output!r} is a file: name a folder for the pictures")
    if folder := next((path for path in args.images if os.path.isdir(path)), ""):
        sys.exit(f"error: {folder!r} is a folder: name images in it, such as {os.path.join(folder, '*.jpg')}")
    stems = {path: os.path.splitext(os.path.basename(path))[0] for path in args.images}
    twice = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    names = {path: f"{os.path.basename(path) if stem in twice else stem}.png" for path, stem in stems.items()}
    if args.output and len(set(names.values())) < len(names):
        sys.exit("error: --output is one folder, but two of the images have one name: run their folders one at a time")
    targets = {os.path.realpath(os.path.join(args.output, name)) for name in names.values()} if args.output else set()
    if same := next((path for path in names if os.path.realpath(path) in targets), ""):
        sys.exit(f"error: --output {args.output!r} would overwrite {same!r}: name another folder")
    detector, bad, threshold = Detector(args.file), 0, args.confidence_threshold
    if args.output and detector.about["part"] == "backbone":
        sys.exit(f"error: --output draws results, but {args.file!r} is a backbone, which gives features: leave --output out")
    if args.value_range:
        detector.about.setdefault("reading", {})["value_range"] = args.value_range
    os.makedirs(args.output or ".", exist_ok=True)
    if args.output and any(as_drawn(name, ImageFont.load_default()) != name for name in detector.about.get("classes") or ()):
        print("pictures show ? for letters of class names that Pillow's font lacks: the JSON has the names", file=sys.stderr)
    together = max(detector.about.get("batch", 0), 1)
    for first in range(0, len(args.images), together):
        images, found = [], []
        for path in args.images[first : first + together]:
            try:
                images.append((path, read(path, detector.about)))
            except Exception as error:  # Pillow's decoders raise anything for a damaged file
                why = f"cannot be read: {error}" if os.path.exists(path) else "does not exist"
                print(f"error: {path!r} {why}", file=sys.stderr)
                bad += 1
        try:
            found = detector.all([image for _, image in images], threshold)
        except Unusable as error:
            print(f"error: {', '.join(path for path, _ in images)}: {error}", file=sys.stderr)
            bad += 1
        for (path, image), one in zip(images, found):
            print(
                json.dumps({"file": path, "height": image.shape[0], "width": image.shape[1], **described(one, detector, threshold)}), flush=True
            )
            high = max(one["scores"], default=1) if "boxes" in one else 1
            if high < threshold:
                print(f"{path}: no objects with a score of {threshold:g} (--confidence-threshold), the highest is {high:.2f}", file=sys.stderr)
            if args.output:
                drawn(image, one, detector, threshold).save(os.path.join(args.output, names[path]))
    sys.exit(min(bad, 1))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # such as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at its end fails too
        sys.exit(141)
    except (Unusable, OSError) as error:
        sys.exit(f"error: {error}")
