"""Finds objects in images, folders, a video or a webcam, and draws them.

backbones demo --config-file mask_rcnn_V_39_FPN_3x.yaml --input street.jpg photos/ --output found MODEL.WEIGHTS model_final.pth
backbones demo --config-file ... --video-input traffic.mp4 --output traffic_found.mp4 --optimize MODEL.WEIGHTS model_final.pth
backbones demo --exported detector.onnx --webcam

The config may be any of this project or of detectron2's zoo. Without --output, pictures are shown in a window.
"""

import argparse
import os
import sys
import time
from collections import Counter
from typing import Any, Callable, Iterator

import numpy as np
from tqdm import tqdm

from ..config import KEYS, check_output_dir, check_output_file, defaults, get, merge_overrides
from ..data.formats.building import SUFFIXES
from ..deploy.optimize import PRECISIONS
from ..drawing import LONGEST, SIDE, draw, scale_of
from ..engine import add_config_arguments, open_named
from ..engine.pictures import marks_of
from ..errors import UserError, counted, either
from ..files import not_there, overwritten
from . import add_threshold, nothing_shown, parser_of, program, run
from .export import read_image

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")  # formats that OpenCV writes

_MOST_DRAWN = 32_000_000  # pixels of a picture: drawing takes a hundred bytes for each
_READING = ("INPUT.VALUE_RANGE", "INPUT.MAX_PIXELS")  # of images, not of the detector: an exported file takes them too
_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}
_NUMBERS = [str(i) for i in range(10_000)]  # names of classes, for a file that knows neither them nor how many there are


def images_of(inputs: list[str], recursive: bool = False, output: str = "") -> tuple[list[str], list[str], list[UserError]]:
    """Finds the files of ``inputs``, their names in the output folder, and an error for each input that gives none.

    Raises UserError if no input gives a file.

    A folder gives its images, with ``recursive`` also those of its subfolders, except hidden ones and ``output``. Otherwise a line says how
    many are left out.
    """
    files: list[str] = []
    names: list[str] = []
    wrong: list[UserError] = []
    for path in inputs:
        if os.path.isdir(path):
            own: list[str] = []
            deeper: list[str] = []
            for folder, folders, inside in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".") and not _is_same(os.path.join(folder, name), output)]
                images = [os.path.join(folder, name) for name in inside if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
                (own if recursive or folder == path else deeper).extend(images)
            if not own:
                hint = f"; {len(deeper)} are in its subfolders: add --recursive" if deeper else ""
                wrong.append(UserError(f"folder {path!r} holds no image: {', '.join(SUFFIXES)}{hint}", "missing-file", "--input"))
                continue
            if deeper:
                print(f"{path}: {counted(len(own), 'image')}; {len(deeper)} more in subfolders are left out; --recursive includes them")
            files += sorted(own)
            names += [os.path.relpath(file, path) for file in sorted(own)]
        elif os.path.isfile(path):
            files.append(path)
            names.append(os.path.basename(path))
        else:
            override = UserError(f"--input {path!r} does not exist: config overrides go after --opts", "missing-file", "--input")
            wrong.append(override if path.partition(".")[0].isupper() else not_there("--input", path, "--input"))
    if not files:
        raise wrong[0] if len(wrong) == 1 else UserError("; ".join(map(str, wrong)), "missing-file", "--input")
    return files, names, wrong


def _is_same(folder: str, output: str) -> bool:
    return bool(output) and os.path.realpath(folder) == os.path.realpath(output)


def targets_of(files: list[str], output: str, names: list[str] | None = None) -> list[str]:
    """Paths of the pictures: ``names`` in the folder ``output``, or for a single file ``output`` itself if it ends like a picture."""
    if not output:
        return [""] * len(files)
    if output.lower().endswith(IMAGES):
        if len(files) > 1:
            raise UserError(f"--output {output!r} is one picture, but there are {len(files)} images: name a folder")
        targets = [output]
    else:
        targets = [os.path.join(output, name) for name in names or map(os.path.basename, files)]
        # formats that OpenCV does not write, and names without a suffix
        targets = [target if target.lower().endswith(IMAGES) else f"{target}.png" for target in targets]
        twice = [target for target, count in Counter(targets).items() if count > 1]
        if twice:
            raise UserError(f"two of the images are named {os.path.basename(twice[0])!r}: run their folders one at a time")
    if target := overwritten(targets, files):
        raise UserError(f"--output {output!r} would overwrite {target!r}")
    for folder in sorted({os.path.dirname(os.path.abspath(target)) for target in targets}):
        check_output_dir(folder, key="--output")
        os.makedirs(folder, exist_ok=True)
    return targets


class Drawer:
    """Draws predictions into images.

    Args:
        metadata: detectron2's, with the class names to write.
        threshold: the lowest score to draw.
        video: whether the images are consecutive frames, in which an object keeps its colour.
    """

    def __init__(self, metadata: Any, threshold: float, video: bool = False):
        from detectron2.utils.video_visualizer import VideoVisualizer

        self.metadata, self.threshold = metadata, threshold
        self.video = VideoVisualizer(metadata) if video else None

    def __call__(self, image: np.ndarray, predictions: dict[str, Any]) -> np.ndarray:
        """Draws the predictions into a copy of the image (H, W, 3) BGR; objects of a small image, but no frame, into an enlarged one."""
        from detectron2.utils.visualizer import Visualizer

        rgb, scale = image[:, :, ::-1], 1.0
        short, long = sorted(image.shape[:2])
        if {*predictions} == {"instances"} and not self.video and short < SIDE and long <= LONGEST and SIDE * LONGEST <= _MOST_DRAWN:
            found = predictions["instances"].to("cpu")
            if self._plain(found):
                return np.ascontiguousarray(draw(rgb, marks_of(found[found.scores >= self.threshold], self.metadata, "%"))[:, :, ::-1])
            scale = scale_of(image, min(SIDE / short, 8), LONGEST)
        drawer = self.video or Visualizer(rgb, self.metadata, scale=scale)
        first = (rgb,) if self.video else ()
        if "panoptic_seg" in predictions:
            segments, about = predictions["panoptic_seg"]
            drawn = drawer.draw_panoptic_seg_predictions(*first, segments.cpu(), about)
        elif "instances" in predictions:
            found = predictions["instances"].to("cpu")
            drawn = drawer.draw_instance_predictions(*first, found[found.scores >= self.threshold])
        elif "sem_seg" in predictions:
            drawn = drawer.draw_sem_seg(*first, predictions["sem_seg"].argmax(dim=0).cpu())
        else:
            raise UserError(f"cannot draw what this model predicts: {', '.join(predictions)}")
        return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])

    @staticmethod
    def _plain(found: Any) -> bool:
        """Whether objects have upright boxes and no keypoints, whose lines `drawing.draw` does not know."""
        return found.has("pred_boxes") and found.pred_boxes.tensor.shape[1] == 4 and not found.has("pred_keypoints")


def frames_of(source: Any) -> tuple[Iterator[np.ndarray], int, float, tuple[int, int]]:
    """Opens a video file, or a camera by number: (frames, their number or 0, frames per second, (width, height))."""
    import cv2

    if isinstance(source, str) and not os.path.isfile(source):
        raise not_there("--video-input", source, "--video-input")
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        raise UserError(f"{'camera' if isinstance(source, int) else '--video-input'} {source!r} cannot be opened")

    def frames() -> Iterator[np.ndarray]:
        while (frame := video.read()[1]) is not None:
            yield frame
        video.release()

    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if isinstance(source, str) else 0
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    return frames(), max(count, 0), video.get(cv2.CAP_PROP_FPS) or 25.0, size


def show(image: np.ndarray, wait: int) -> bool:
    """Shows an image for ``wait`` milliseconds, or with 0 until a key is pressed; returns whether to continue."""
    import cv2

    try:
        cv2.imshow("backbones", image)
        return cv2.waitKey(wait) not in (27, ord("q"))
    except cv2.error as error:
        raise UserError("this opencv has no windows (a headless build): name an --output") from error


def load(args: argparse.Namespace) -> tuple[Callable[[np.ndarray], dict[str, Any]], Any, dict[str, Any]]:
    """Loads what the command line names: (predictor, metadata, arguments for reading images)."""
    from detectron2.data.catalog import Metadata

    if args.exported:
        from ..deploy.runner import Runner

        others = {"--config-file": args.config_file, "--backbone": args.backbone, "--weights": args.weights, "--optimize": args.optimize}
        others |= {"--precision": args.precision != "float32", "overrides": set(args.opts[::2]) - {*_READING}}
        for flag in (flag for flag, value in others.items() if value):
            hint = f" other than {either(_READING)}" if flag == "overrides" else ""
            raise UserError(f"--exported cannot be combined with {flag}{hint}: the file is a whole detector", "conflict", "--exported")
        given = _reading(args.opts)
        runner = Runner(args.exported)
        if runner.about.get("panoptic"):
            runner.about["panoptic"][2] = args.confidence_threshold
        # detectron2 draws panoptic results and pixels only with names
        names = {"thing_classes": runner.about["classes"] or _NUMBERS, "stuff_classes": runner.about["stuff"] or _NUMBERS}
        return runner, Metadata().set(**names), {**runner.about.get("reading", {}), **given}
    if not args.config_file:
        raise UserError("name a detector: --config-file with MODEL.WEIGHTS, or --exported", "missing-argument", "--config-file")
    if args.precision != "float32" and not args.optimize:
        raise UserError("--precision needs --optimize", "missing-argument", "--precision")
    from ..deploy.predictor import Predictor

    front = open_named(args)
    front.follow_weights()
    for node in ("ROI_HEADS", "RETINANET", "GFL"):
        front.set(f"MODEL.{node}.SCORE_THRESH_TEST", min(args.confidence_threshold, 0.05))
    front.set("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", args.confidence_threshold)
    front.check_model()
    predictor = Predictor(front, args.precision if args.optimize else "")
    for module in predictor.model.modules():  # a Python config need not spell out its thresholds
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh = min(args.confidence_threshold, 0.05)
        if hasattr(module, "combine_instances_score_thresh"):
            module.combine_instances_score_thresh = args.confidence_threshold
    if predictor.said != "class names come from DATASETS.CLASSES":  # which the config itself says
        print(predictor.said)
    return predictor, predictor.metadata, predictor.reading


def _reading(opts: list[str]) -> dict[str, Any]:
    """What overrides of `_READING` say, as arguments for reading images. Raises UserError for what they cannot be."""
    cfg = defaults()
    merge_overrides(cfg, opts)
    for error in (key.error(get(cfg, key.name)) for key in KEYS if key.name in opts[::2]):
        if error:
            raise error
    return {key.partition(".")[2].lower(): get(cfg, key) for key in opts[::2]}


def main() -> None:
    parser = parser_of(program("demo"), __doc__)
    add_config_arguments(parser, overrides=False)
    parser.add_argument("--exported", default="", metavar="FILE", help="a detector written by `backbones export`, instead of a config")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", nargs="+", metavar="PATH", help="images, or folders of images")
    parser.add_argument("--recursive", action="store_true", help="include the images in subfolders")
    what.add_argument("--video-input", metavar="FILE", help="a video")
    what.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument("--output", default="", metavar="PATH", help="a folder, or for one image or video a file (default: show a window)")
    add_threshold(parser, "lowest score to draw")
    parser.add_argument("--optimize", action="store_true", help="predict faster, with the same results")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="for --optimize; 16 bits change results a little, float16 needs a GPU"
    )
    said = f"config overrides, such as MODEL.WEIGHTS FILE; with --exported {either(_READING)}"
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help=said)
    args, rest = parser.parse_known_args()
    args.opts = [*rest, *args.opts]
    if args.input:
        files, names, wrong = images_of(args.input, args.recursive, args.output)
        targets = targets_of(files, args.output, names)
        for error in wrong:  # before the model loads; the other inputs are still processed
            print(f"error: {error}", file=sys.stderr)
        predict, metadata, reading = load(args)
        bad = _images(files, targets, predict, Drawer(metadata, args.confidence_threshold), reading)
        without = [f"{len(wrong)} of {counted(len(args.input), 'input')} gave no image"] if wrong else []
        unread = [f"{bad} of {counted(len(files), 'image')} cannot be read"] if bad else []
        if wrong or bad:  # each was reported by name
            raise UserError("; ".join(without + unread), "bad-file" if bad else "missing-file", "--input")
    else:
        source: Any = 0 if args.webcam else args.video_input
        target = video_target(source, args.output)
        predict, metadata, _ = load(args)
        _video(source, target, predict, Drawer(metadata, args.confidence_threshold, video=True))


def _images(files: list[str], targets: list[str], predict: Callable, drawer: Drawer, reading: dict[str, Any]) -> int:
    """Processes the files and returns how many cannot be read. Raises UserError if there is only one."""
    import cv2

    bad = 0
    for file, target in zip(tqdm(files, unit="image", disable=len(files) == 1 or None), targets):
        try:
            image = read_image(file, **reading)
        except (UserError, MemoryError) as error:  # the other files can still be processed
            if len(files) == 1 and isinstance(error, UserError):
                raise
            bad += 1
            tqdm.write(f"error: {str(error) or f'image {file!r} needs more memory than there is'}", file=sys.stderr)
            continue
        height, width = image.shape[:2]
        scale = min(1.0, (_MOST_DRAWN / (height * width)) ** 0.5)
        size = max(int(height * scale), 1), max(int(width * scale), 1)
        begun = time.perf_counter()
        predictions = predict(image, size)
        seconds = time.perf_counter() - begun
        drawn = drawer(image if scale == 1 else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), predictions)
        words = "" if scale == 1 else f"{width}x{height} pixels, drawn at {size[1]}x{size[0]}, "
        if "instances" in predictions:
            scores = predictions["instances"].scores
            words += f"{nothing_shown(scores, drawer.threshold) or counted(int((scores >= drawer.threshold).sum()), 'object')}, "
        tqdm.write(f"{target or file}: {words}{seconds:.2f} s", file=sys.stdout)
        if not target:
            if not show(drawn, 0):
                break
        elif not cv2.imwrite(target, drawn):
            raise UserError(f"{target!r} cannot be written")
    return bad


def video_target(source: Any, output: str) -> str:
    """The path of the video that ``output`` names for a ``source``, whose folder is made; "" for a window. Raises UserError."""
    if not output:
        return ""
    if os.path.isdir(output):
        output = os.path.join(output, f"{os.path.splitext(os.path.basename(str(source)))[0]}_found.mp4")
    if os.path.splitext(output)[1].lower() not in _CODECS:
        raise UserError(f"--output {output!r}: the name of a video must end in {', '.join(_CODECS)}")
    if isinstance(source, str) and overwritten([output], [source]):
        raise UserError(f"--output {output!r} would overwrite the input")
    check_output_file(output, "--output")
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    return output


def _video(source: Any, output: str, predict: Callable, drawer: Drawer) -> None:
    """Processes a video or a camera into ``output``, of `video_target`. One that fails leaves an earlier output as it was."""
    import cv2

    frames, count, rate, size = frames_of(source)
    writer, partial = None, ""
    if output:
        stem, kind = os.path.splitext(output)
        partial = f"{stem}.partial{kind}"
        writer = cv2.VideoWriter(partial, cv2.VideoWriter.fourcc(*_CODECS[kind.lower()]), rate, size)
        if not writer.isOpened():
            raise UserError(f"--output {output!r} cannot be written")
    done, whole = 0, False
    try:
        for frame in tqdm(frames, total=count or None, unit="frame", disable=None):
            drawn = drawer(frame, predict(frame))
            done += 1
            if writer:
                writer.write(cv2.resize(drawn, size))
            elif not show(drawn, 1):
                break
        whole = True
    except KeyboardInterrupt:
        whole = isinstance(source, int)  # a camera's video ends in no other way
        raise
    finally:
        if writer:
            writer.release()
            if done and whole:
                os.replace(partial, output)
            elif done:
                print(f"{partial}: {counted(done, 'frame')}, then it was stopped; {output} is not written", file=sys.stderr)
            elif os.path.isfile(partial):
                os.remove(partial)
    if not done:
        raise UserError(f"{source!r} holds no frame that can be read")
    if output:
        # the stated number is a guess if frames differ in length
        missing = f"; {source!r} states {count}: it is truncated or damaged" if done < 0.95 * count else ""
        print(f"{output}: {counted(done, 'frame')}{missing}")


if __name__ == "__main__":
    run(main)
