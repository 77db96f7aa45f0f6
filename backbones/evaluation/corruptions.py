"""Evaluates a model on damaged images: noise, blur, JPEG, brightness and contrast at five severities, by Pillow and numpy; snow and frost.

The strengths are those of the package imagecorruptions (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness", 2019). Its own
snow and frost are used if it is installed. Its fog and blurs fail under numpy 2 and current scikit-image.
"""

import copy
import io
import math
import os
import tempfile
import warnings
import zlib
from typing import Any, Callable, Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageFilter

from ..data import images
from ..data.loader import refusal, unreadable
from ..errors import UserError

_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # deviation, of values from 0 to 1
_BLUR = (1, 2, 3, 4, 6)  # pixels
_QUALITY = (25, 18, 15, 10, 7)
_BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value of HSV
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # share that is left


def noise(image: np.ndarray, severity: int) -> np.ndarray:
    generator = np.random.default_rng(zlib.crc32(image.tobytes()))  # the same for an image every time
    return _bytes(image / 255 + generator.normal(0, _NOISE[severity - 1], image.shape))


def blur(image: np.ndarray, severity: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR[severity - 1])))


def jpeg(image: np.ndarray, severity: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY[severity - 1])
    return np.asarray(Image.open(buffer).convert("RGB"))


def brightness(image: np.ndarray, severity: int) -> np.ndarray:
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 2] = _bytes(hsv[..., 2] / 255 + _BRIGHTER[severity - 1])
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def contrast(image: np.ndarray, severity: int) -> np.ndarray:
    mean = image.mean((0, 1), keepdims=True)
    return _bytes(((image - mean) * _CONTRAST[severity - 1] + mean) / 255)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {f.__name__: f for f in (noise, blur, jpeg, brightness, contrast)}


_LEAST = 32  # pixels of a side that snow and frost need


def corruptions(say: Callable[[str], Any] = print, records: Sequence[dict] = ()) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """`CORRUPTIONS`, and snow and frost if their package is installed and takes all images of the ``records``; otherwise says why not."""
    small = next((record["file_name"] for record in records if min(record.get(side, _LEAST) for side in ("height", "width")) < _LEAST), "")
    if small:
        say(f"without snow and frost: image {small!r} has a side below {_LEAST} pixels")
        return CORRUPTIONS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pkg_resources, which the package finds its pictures by
            import imagecorruptions
    except ImportError as error:
        say(f"without snow and frost: imagecorruptions cannot be imported ({error}): pip install 'backbones[corruptions]'")
        return CORRUPTIONS

    def weather(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
        def damage(image: np.ndarray, severity: int) -> np.ndarray:
            before = np.random.get_state()
            np.random.seed(zlib.crc32(image.tobytes()))  # it draws from numpy's global generator
            try:
                return imagecorruptions.corrupt(image, severity, name)
            except AttributeError as error:  # of images below `_LEAST` pixels
                raise UserError(f"{name}: {error}", "data") from error
            finally:
                np.random.set_state(before)

        return damage

    return {**CORRUPTIONS, **{name: weather(name) for name in ("snow", "frost")}}


def _bytes(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def evaluate(front: Any, dataset: str, task: str, severities: Sequence[int], weights: str) -> dict[str, list[float]]:
    """AP of ``task`` for each severity, by the name of the damage; "as they are" is the AP on undamaged images. Raises UserError."""
    if not os.path.isfile(weights):
        raise UserError(f"weights {weights!r} do not exist: set --weights to those to evaluate on damaged images", "missing-file", "--weights")
    with tempfile.TemporaryDirectory(prefix="corruptions-") as folder:
        name = f"{dataset} damaged"
        front = front.clone("OUTPUT_DIR", folder, "MODEL.WEIGHTS", weights, "DATASETS.TEST", (name,), "TEST.EXPECTED_RESULTS", [])
        model = front.build_model()
        front.load_for_evaluation(model)
        model.eval()
        records, reading = DatasetCatalog.get(dataset), images.settings(front.settings)
        result: dict[str, list[float]] = {}
        about = copy.copy(MetadataCatalog.get(dataset).as_dict())
        kinds = corruptions(records=records)
        for kind in ("as they are", *kinds):
            result[kind] = []
            for severity in severities if kind in kinds else severities[:1]:
                damaged = []
                for i, record in enumerate(records):
                    try:
                        pixels = images.read(record["file_name"], "RGB", **reading)
                    except images.UNREADABLE as error:
                        if not front.skips:
                            raise refusal(unreadable(record, error), front.skips) from error
                        damaged.append(record)  # the evaluation leaves it out, and says so
                        continue
                    path = os.path.join(folder, f"{i}.png")
                    Image.fromarray(kinds[kind](pixels, severity) if kind in kinds else pixels).save(path, compress_level=1)
                    damaged.append({**record, "file_name": path})
                DatasetCatalog.register(name, lambda damaged=damaged: damaged)
                MetadataCatalog.get(name).set(**{key: value for key, value in about.items() if key != "name"})
                try:
                    found = front.evaluate(model)
                finally:
                    DatasetCatalog.remove(name)
                    MetadataCatalog.remove(name)
                ap = float(found.get(task, {}).get("AP", math.nan))
                result[kind].append(0.0 if math.isnan(ap) else ap)  # it is NaN if there are no detections
        result["as they are"] *= len(severities)
    return result
