"""What can be wrong with a data set, and how it is told."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

from ..errors import SEVERITIES, Finding

# kind -> (severity, what is wrong, what to do)
KINDS = {
    "missing file": ("error", "the annotation file or the image folder is not there", "put it there, or correct the path"),
    "unreadable file": ("error", "the annotation file cannot be used", "write it again in COCO's format"),
    "malformed": ("error", "entries lack what COCO's format asks for", "complete or remove them"),
    "duplicate image id": ("error", "images share an id", "number images from 1, each once"),
    "duplicate annotation id": ("error", "annotations share an id", "number annotations from 1, each once"),
    "duplicate category id": ("error", "categories share an id", "give each its own"),
    "duplicate category name": ("warning", "categories share a name", "join them, or rename one"),
    "annotation id 0": ("warning", "has the id 0, whose detection pycocotools always counts as wrong", "number annotations from 1"),
    "orphan annotation": ("error", "annotations are of images that the file does not list", "remove them, or list the images"),
    "unknown category": ("error", "annotations are of categories that the file does not list", "remove them, or list the categories"),
    "category gaps": ("note", "category ids have gaps: classes are numbered in their order", "nothing, if no other tool takes the ids for classes"),
    "unused category": ("warning", "categories have no object, so nothing is learnt or measured of them", "remove them, or annotate some"),
    "imbalance": ("warning", "classes have less than a hundredth of the objects of the largest", "try RepeatFactorTrainingSampler"),
    "other categories": ("error", "categories are not those of the first data set", "give all data sets the same categories, with the same ids"),
    "box not finite": ("error", "boxes hold NaN, infinity or numbers beyond any image", "remove or redraw them"),
    "empty box": ("warning", "boxes have no area, or a negative side: training drops them", "redraw them: COCO's boxes are x, y, width, height"),
    "box outside": ("error", "boxes lie wholly outside their image", "check which corner and which image they are measured from"),
    "box beyond edge": ("warning", "boxes reach over the edge of their image by more than a pixel, and are cut there", "check that boxes are x, y, width, height"),
    "tiny box": ("note", "boxes are under 8 pixels (the root of their area) as the network sees them: they are hardly learnt", "let training enlarge the images"),
    "duplicate annotation": ("warning", "annotations repeat another's box and category", "remove them"),
    "ignored annotation": ("error", "annotations have a non-zero 'ignore', which detectron2 refuses", "remove them, or set iscrowd 1"),
    "short polygon": ("warning", "polygons have fewer than 3 points or an odd number of values: detectron2 drops them", "redraw them"),
    "bad mask": ("error", "masks are neither polygons in their image nor run lengths", "write polygons [[x, y, ...]] or {size, counts}"),
    "mask of other size": ("error", "run lengths are of another size than their image", "make them anew from masks of the image's height and width"),
    "mask as run lengths": ("error", "masks are run lengths, which polygons cannot be made of", "set INPUT.MASK_FORMAT or instance_mask_format to bitmask"),
    "no mask": ("error", "objects have no mask, but the model learns masks", "annotate them, or train without masks"),
    "no keypoints": ("error", "objects have no keypoints, but the model learns keypoints", "annotate them (zeros where unknown)"),
    "number of keypoints": ("error", "keypoints are not x, y, visibility of each that their category names", "complete them with zeros"),
    "keypoint visibility": ("warning", "keypoints have a visibility other than 0, 1 and 2", "0: unknown, 1: hidden, 2: seen"),
    "count of keypoints": ("warning", "num_keypoints is not the number of labelled keypoints, and evaluation goes by it", "count them anew"),
    "image without objects": ("note", "images have no annotations", "nothing: training leaves them out, unless FILTER_EMPTY_ANNOTATIONS or filter_empty is False"),
    "crowds only": ("note", "images have crowds alone, of which nothing is learnt", "nothing: training leaves them out"),
    "repeated file": ("warning", "image files are listed under several ids", "list each once, with all its annotations"),
    "missing image": ("error", "image files are not there", "put them there, or remove their entries"),
    "empty image": ("error", "image files are of zero bytes", "copy them again"),
    "unreadable image": ("error", "image files cannot be read", "copy or convert them again"),
    "truncated image": ("error", "image files end too early", "copy them again"),
    "image of other size": ("error", "images have another size than the annotations say", "annotate these images, or correct width and height"),
    "EXIF orientation": ("note", "images are turned as their EXIF tag says", "check that the annotations are of the turned images"),
    "grey image": ("note", "images are grey: detectron2 gives them three equal channels", "nothing"),
    "alpha image": ("warning", "images are transparent: detectron2 drops alpha, so that hidden colours show", "save them over a background"),
    "CMYK image": ("warning", "images are CMYK: detectron2 converts them without their profile, colours change", "save them as RGB"),
    "deep image": ("error", "images have 16 or more bits: detectron2 cuts values at 255, most pixels become white", "scale them to 8 bits"),
    "palette image": ("note", "images are of palettes or another colour space: detectron2 converts them to RGB", "nothing"),
    "duplicate image": ("warning", "image files have the same content as another of the data set", "keep one of each"),
    "train and test": ("error", "image files of the test data are trained on", "remove them from one of the two: figures would be too good"),
}  # fmt: skip


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong: of ``kind``, a key of `KINDS`, in the data set ``dataset``; ``name`` says which file or id."""

    kind: str
    dataset: str
    name: str

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]


def summarize(problems: Iterable[Flaw], shown: int = 5) -> List[Finding]:
    """A line for each kind of problem in each data set, errors first: their number, and the first ``shown`` by name."""
    names: Dict[Tuple[str, str], List[str]] = defaultdict(list)
    counts: Counter = Counter()
    for problem in problems:
        key = (problem.kind, problem.dataset)
        counts[key] += 1
        if counts[key] <= shown:
            names[key].append(problem.name)
    findings = []
    for (kind, dataset), count in counts.items():
        severity, message, advice = KINDS[kind]
        more = f" and {count - shown} more" if count > shown else ""
        findings.append(Finding(severity, f"{dataset}: {kind} ({count}): {message}: {', '.join(names[kind, dataset])}{more}", advice))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
