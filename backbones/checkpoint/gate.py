"""The load gate: it reports what a checkpoint filled, and refuses weights that do not fit.

detectron2 loads whatever matches and logs the rest. Given a file of another network, it silently trains or evaluates random weights.
"""

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from typing import Any, Iterator

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from fvcore.common.checkpoint import Checkpointer
from tabulate import tabulate
from torch import nn

from ..detectors import LastStageROIHeads
from ..errors import UserError, first_of, one_line
from ..files import replacing, write_whole
from ..layers import without_wrappers
from ..timm import TimmNetwork
from .classes import ROWS, by_name, chosen, names_in
from .fetching import fetch, kept_if_whole
from .reading import HEURISTICS, is_whole, read_checkpoint

PARTIAL = "To load only what fits: --allow-partial-weights"
# a backbone's file may lack these for training: sampling offsets start at zero
_LEARNED = re.compile(r".*\.(offset|conv2_offset)\.\w+$")
# rows of the table: the first pattern that matches a key names its part
_PARTS = (
    ("backbone", r"backbone\.(?!fpn_|top_block\.)|roi_heads\.res5\."),  # detectors without FPN run the backbone's last stage in their heads
    ("FPN", r"backbone\."),
    ("RPN", r"proposal_generator\."),
    ("box head", r"roi_heads\.box_"),
    ("mask head", r"roi_heads\.mask_"),
    ("keypoint head", r"roi_heads\.keypoint_"),
    ("semantic head", r"sem_seg_head\."),
    ("head", r"head\."),
)


def part_of(key: str) -> str:
    """The part of a detector that a key of its state dict belongs to, by the names of the table's rows."""
    return next((name for name, pattern in _PARTS if re.match(pattern, key)), "other")


@dataclass
class LoadReport:
    """What one checkpoint filled in one model. The lists hold keys of the model's state dict; ``unused`` holds keys of the file."""

    path: str
    total: list[str]
    new: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]  # key, shape in the file, shape in the model
    unused: list[str]
    classes: str = ""  # a table of the classes that were matched by name

    def unfilled(self, *parts: str) -> list[str]:
        """The keys that kept their initial values, in the named parts or in all."""
        keys = self.new + [key for key, _, _ in self.mismatched]
        return [key for key in keys if not parts or part_of(key) in parts]

    def table(self) -> str:
        rows = []
        wrong = [key for key, _, _ in self.mismatched]
        for name in (*(name for name, _ in _PARTS), "other"):
            count = [sum(part_of(key) == name for key in keys) for keys in (self.total, self.new, wrong, self.unused)]
            if any(count):
                rows.append((name, f"{count[0] - count[1] - count[2]}/{count[0]}", *count[1:]))
        lines = [tabulate(rows, headers=("part", "loaded", "new", "wrong shape", "unused in file"), tablefmt="pipe")]
        lines += [f"  wrong shape: {key}: file {file}, model {model}" for key, file, model in self.mismatched[:5]]
        for what, keys in (("new", self.new), ("unused", self.unused)):
            if keys:
                lines.append(f"  {what}: {first_of(keys)}")
        return "\n".join([f"Weights loaded from {self.path}:", *lines, *filter(None, [self.classes])])

    def refuse(self, require: str, hint: str = PARTIAL) -> None:
        """Raises UserError if the file filled less than ``require``, see `GatedCheckpointer`; ``hint`` says what to do."""
        if require == "nothing":
            return
        if require == "backbone":
            of_norms = [key for key in self.unused if part_of(key) in ("FPN", "backbone") and key.endswith(("running_mean", "running_var"))]
            for key in (key for key in of_norms if f"{key.rpartition('.')[0]}.weight" in self.total):
                raise UserError(
                    f"checkpoint {self.path!r} belongs to a network with batch norms, whose statistics ({key}, ...) do not fit "
                    f"this network's norms: set the backbone's NORM to FrozenBN, BN or SyncBN, or MODEL.WEIGHTS ''. {hint}",
                    "misfit-weights",
                )
        parts = [require] if require == "backbone" and any(part_of(key) == require for key in self.total) else []
        keys = self.unfilled(*parts)
        if require == "backbone" and not parts and len(keys) < len(self.total):  # of a model of the user's own, any part may be new
            return
        if not keys or parts and all(_LEARNED.match(key) for key in keys):
            return
        total = [key for key in self.total if not parts or part_of(key) in parts]
        if set(keys) <= {key for key, _, _ in self.mismatched if ROWS.search(key)}:
            hint = f"Its number of classes differs: name its classes in MODEL.WEIGHTS_CLASSES to match them by name. {hint}"
        shapes = {key: f" (file {file}, model {own})" for key, file, own in self.mismatched}
        raise UserError(
            f"checkpoint {self.path!r} does not fit: {len(keys)} of {len(total)} weights of the {'backbone' if parts else 'model'} would keep "
            f"their initial values, the first is {keys[0]}{shapes.get(keys[0], '')}. {hint}",
            "misfit-weights",
        )


def write_checkpoint(data: dict[str, Any], path: str, more: str = "") -> None:
    """Writes a checkpoint, complete or not at all. Raises UserError if it cannot, with ``more`` behind the reason."""
    try:
        with replacing(path) as partial, open(partial, "wb") as f:
            torch.save(data, f)
    except (OSError, RuntimeError) as error:  # torch's writer has its own words for a full disk
        said = f"checkpoint {path!r} cannot be written: {one_line(error)}{more}"
        raise UserError(said, "cannot-write") from error


def last_checkpoint(folder: str, resume: bool = True) -> str:
    """The last checkpoint of a run's folder; "" if there is none, or without ``resume``."""
    checkpointer = GatedCheckpointer(nn.Identity(), folder)
    return checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else ""


class GatedCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which also reads files safely, logs a `LoadReport`, and refuses weights that do not fit.

    Args:
        require: what a loaded file must fill completely: "all" of the model (evaluation, resuming), its "backbone" (training), or
            "nothing". Anything less raises UserError.
        hint: how a user can load only what fits, if there is a way.
        classes: classes of the model and, where the config states them, of the initial weights, to match rows by name: see `classes.by_name`.

    After a load, ``report`` is its `LoadReport`.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, require: str = "backbone", hint: str = PARTIAL, classes: Any = None, **kwargs: Any
    ):
        super().__init__(model, save_dir, **kwargs)
        self.names: tuple[dict[str, list[str]], ...] = classes or ({}, {})
        assert require in ("all", "backbone", "nothing"), require
        self.require, self.hint = require, hint
        self.report: LoadReport | None = None

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Writes ``name``.pth, complete or not at all, and with ``tag`` records it as the last one. Raises UserError if it cannot."""
        if not self.save_dir or not self.save_to_disk:
            return
        kwargs.update(
            {key: value for key, value in (("conventions", conventions_of(self.model)), ("preprocessing", images_of(self.model))) if value}
        )
        if "://" in self.save_dir:  # remote: its handler decides how safely
            super().save(name, **kwargs)
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        rest = {**{key: each.state_dict() for key, each in self.checkpointables.items()}, **kwargs}
        data = {"model": self.model.state_dict(), **_without_scalars(rest)}
        logging.getLogger(__name__).info(f"Saving checkpoint to {path}")
        write_checkpoint(data, path, ". Earlier checkpoints are intact")
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def forget_last_checkpoint(self) -> None:
        """Prevents resuming from what another run left in the folder."""
        if self.save_dir and "://" not in self.save_dir:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, "last_checkpoint"))

    def is_writing(self, name: str) -> bool:
        """Whether some process is writing ``name``.pth."""
        return os.path.exists(os.path.join(self.save_dir, f"{name}.pth.partial"))

    def is_last(self, name: str) -> bool:
        """Whether some process has written ``name``.pth as the last checkpoint of the folder."""
        with contextlib.suppress(OSError), open(os.path.join(self.save_dir, "last_checkpoint"), encoding="utf-8") as f:
            return f.read() == f"{name}.pth"
        return False

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
        else:
            write_whole(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last complete checkpoint, even if ``last_checkpoint`` names one that does not exist."""
        path: str = super().get_checkpoint_file()
        if not path or "://" in path or is_whole(path):
            return path
        others: list[str] = [p for p in self.get_all_checkpoint_files() if re.fullmatch(r"model_(\d+|final)\.pth", os.path.basename(p))]
        for other in sorted(others, key=os.path.getmtime, reverse=True):
            if is_whole(other):
                what = "is incomplete" if os.path.isfile(path) else "does not exist, although last_checkpoint names it"
                logging.getLogger(__name__).warning(f"checkpoint {path!r} {what}: resuming from {other!r}")
                return other
        return path

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Like detectron2's. Raises UserError for a file that is missing, is not a checkpoint, or does not fit."""
        self._loading = path
        # a resumed training needs the weights themselves; everything else takes their average if there is one
        self._beginning = checkpointables is not None
        self._averaged = checkpointables is not None or "trainer" not in self.checkpointables
        local = fetch(path, self.path_manager) if "://" in path else path.partition("?")[0]
        if path and not self.path_manager.isfile(local):
            what = "is a folder: name a file in it" if self.path_manager.isdir(local) else "does not exist"
            raise UserError(f"checkpoint {path!r} {what}", "missing-file", "MODEL.WEIGHTS")
        # not detectron2's ``load``, which also parses the query, and cannot load again after a failure
        rest: dict[str, Any] = Checkpointer.load(self, local, checkpointables)
        return rest

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        if resume and self.has_checkpoint():
            path = self.get_checkpoint_file()
            self.hint = f"A run resumes with the same model: its config is {os.path.join(self.save_dir, 'config.yaml')!r}"
            if self.require != "nothing":
                self.require = "all"
            rest = self.load(path)
            if "trainer" in self.checkpointables and "trainer" not in self._found:
                said = f"--resume: {path!r}, the last checkpoint of {self.save_dir!r}, holds weights but no training state"
                raise UserError(f"{said}: to start from its weights, set MODEL.WEIGHTS and omit --resume", "resume", "--resume")
            return rest
        return self.load(path, checkpointables=[])

    def _load_file(self, filename: str) -> dict[str, Any]:
        with kept_if_whole(filename, self._loading):
            data = self._interpret(filename, read_checkpoint(filename))
        self._found = set(data)
        average = data.pop("ema", None) if self._averaged else None
        if isinstance(average, dict) and any(str(key).startswith("module.") for key in average):  # others' have other names
            logging.getLogger(__name__).info(f"{filename} holds an average of the weights (MODEL_EMA), which is used")
            data["model"] = {key[len("module.") :]: value for key, value in average.items() if key.startswith("module.")}
        weights = data["model"]
        if not isinstance(weights, dict):
            raise UserError(f"checkpoint {filename!r}: 'model' is a {type(weights).__name__}, not a state dict", "bad-file")
        for key, value in weights.items():
            if not isinstance(key, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                known = next((name for name in ("state_dict", "model_state", "model_state_dict") if name in weights), None)
                hint = f": its weights are under {known!r}, as in another project's files: convert it with `backbones convert`" if known else ""
                said = f"{key!r} is a {type(value).__name__}, not a tensor{hint}"
                raise UserError(f"checkpoint {filename!r} is not a state dict: {said}", "bad-file")
        return data

    def _interpret(self, filename: str, data: dict[str, Any]) -> dict[str, Any]:
        """A file's content in detectron2's form: weights under "model", and how to match them."""
        if filename.endswith(".pkl"):
            if "model" in data and "__author__" in data:  # detectron2's zoo
                return data
            data = data.get("blobs", data)  # Detectron's: detectors have "blobs", classifiers are flat
            blobs = {key: value for key, value in data.items() if not str(key).endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):  # pycls
            if "model_state" not in data:
                raise UserError(f"checkpoint {filename!r} has no 'model_state', which files of pycls have", "bad-file")
            return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
        alone = next((key for key in ("ema", "model_ema") if "model" not in data and isinstance(data.get(key), dict)), None)
        data = dict(data) if "model" in data else {"model": data[alone] if alone else data}
        query = self._loading.partition("?")[2]
        if query == HEURISTICS:
            data["matching_heuristics"] = True
        elif query and not self._loading.startswith(("http://", "https://")):  # a query in a URL belongs to the server
            raise UserError(f"checkpoint {self._loading!r}: unknown query {query!r}. Allowed: {HEURISTICS!r}", "value", "MODEL.WEIGHTS")
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        model, given = self.model, {key: torch.as_tensor(value) for key, value in checkpoint["model"].items()}
        as_stored, own = dict(checkpoint), model.state_dict()
        weights = with_our_names(model, given)
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        if checkpoint.pop("matching_heuristics", False):
            weights = align_and_update_state_dicts(own, weights, c2_conversion=from_caffe2)
        ours, (theirs, said) = self.names[0] if self._beginning else {}, chosen(self.names[1], names_in(checkpoint))
        weights, matched = by_name(model, weights, theirs, ours)
        checkpoint["model"] = dict(weights)
        try:
            incompatible = super()._load_model(checkpoint)
        except RuntimeError as error:  # mismatches that only torch detects
            said = f"checkpoint {self._loading!r} does not fit the model: {one_line(error)}"
            raise UserError(said, "misfit-weights") from error
        # batch counters are not weights, the config sets preprocessing, and Detectron folded statistics into affine weights
        folded = r"|.*\.running_(mean|var)" if from_caffe2 else ""
        ignored = re.compile(rf"(.*\.num_batches_tracked|pixel_mean|pixel_std|.*anchor_generator\..*{folded})$")
        self.report = LoadReport(
            path=self._loading,
            total=[key for key in own if not ignored.match(key)],
            # not torch's own list, because frozen norms fill in statistics that a file lacks
            new=[key for key in own if key not in weights and not ignored.match(key)],
            mismatched=[(key, tuple(file), tuple(shape)) for key, file, shape in incompatible.incorrect_shapes],
            unused=[key for key in incompatible.unexpected_keys if not ignored.match(key)],
            classes="\n".join(filter(None, [said if ours else "", matched])),
        )
        logging.getLogger(__name__).info(self.report.table())
        self.report.refuse(self.require, overrides_of(checkpoint) + self.hint)
        if self.require != "nothing":  # weights of another network, which was refused first, would be asked for other images
            check_meant_for(model, as_stored, self._loading, self.hint)
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Does nothing: the report lists them."""


def _without_scalars(value: Any) -> Any:
    """Replaces numpy's numbers by Python's, because `torch.load(weights_only=True)` refuses numpy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _without_scalars(item) for key, item in value.items()}
    return type(value)(map(_without_scalars, value)) if type(value) in (list, tuple) else value


def check_meant_for(model: nn.Module, checkpoint: dict[str, Any], path: str, hint: str) -> None:
    """Raises UserError for weights trained with different images, or in another network of the same shapes: only a low AP would show it.

    ``hint`` says how to load them anyway.
    """
    for reason in (*_of_images(model, checkpoint.get("preprocessing")), *_of_conventions(model, checkpoint), *_of_released(model, checkpoint)):
        raise UserError(f"checkpoint {path!r} {reason}. {hint}", "misfit-weights")


def _of_images(model: nn.Module, stated: Any) -> Iterator[str]:
    ours = images_of(model)
    if not ours or not isinstance(stated, dict):
        return
    keys = {"format": "INPUT.FORMAT", "pixel_mean": "MODEL.PIXEL_MEAN", "pixel_std": "MODEL.PIXEL_STD"}
    both = {name: key for name, key in keys.items() if name in ours and name in stated}
    wanted = [f'{key} "{stated[name]}"' for name, key in both.items() if not _same(stated[name], ours[name])]
    if wanted:
        yield f"expects images of another format than the config states: set {' '.join(wanted)}"


def images_of(model: nn.Module) -> dict[str, Any]:
    """What images a detector expects: ``format``, ``pixel_mean``, ``pixel_std``; empty for a model that does not normalize them."""
    if not hasattr(model, "pixel_mean"):
        return {}
    images: dict[str, Any] = {
        # rounded to the config's values, without the error of single precision
        name: [round(value, 4) for value in getattr(model, name).flatten().tolist()]
        for name in ("pixel_mean", "pixel_std")
    }
    form = getattr(model, "input_format", None)
    return {"format": form, **images} if form else images


def _same(a: Any, b: Any) -> bool:
    try:
        return a == b or (len(a) == len(b) and bool(np.allclose(np.asarray(a, float), b, rtol=1e-4)))
    except (TypeError, ValueError):
        return False


def conventions_of(model: nn.Module) -> dict[str, str]:
    """Facts about the use of a model's weights that their shapes do not show: config key -> value."""
    return {key: value for module in model.modules() for key, value in getattr(module, "conventions", {}).items()}


def _of_conventions(model: nn.Module, checkpoint: dict[str, Any]) -> Iterator[str]:
    stated = checkpoint.get("conventions")
    for key, value in conventions_of(model).items():
        theirs = stated.get(key, value) if isinstance(stated, dict) else value
        if theirs != value:
            yield f"was trained with {key} {theirs!r}, but the config has {value!r}: set {key} {theirs}"


def _of_released(model: nn.Module, checkpoint: dict[str, Any]) -> Iterator[str]:
    """Released files do not state which images they expect, but their keys show who released them."""
    form = getattr(model, "input_format", None)
    for backbone in model.modules():
        keys, order = getattr(backbone, "released_images", (re.compile(""), form))
        if form and order and order != form and any(keys.search(key) for key in checkpoint["model"]):
            said = f"holds weights as released, for {order} images, but INPUT.FORMAT is {form!r}: set it and the means in that order"
            yield said if isinstance(backbone, TimmNetwork) else f"{said}, or reorder the weights with `python -m convert`"


def overrides_of(checkpoint: dict[str, Any]) -> str:
    """A sentence on the config that a converted file needs; empty if it needs none."""
    provenance = checkpoint.get("provenance")
    overrides = provenance.get("overrides") if isinstance(provenance, dict) else None
    if not overrides or not isinstance(overrides, list) or not all(isinstance(item, (str, int, float)) for item in overrides[:20]):
        return ""
    return f"The file says that its config needs {' '.join(map(str, overrides[:20]))[:300]}. "


def with_our_names(model: nn.Module, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Removes the prefixes of wrappers, adds the backbone's where it is missing, and translates released key names."""
    state_dict = without_wrappers(state_dict)
    for prefix, backbone in model.named_modules():
        if not hasattr(backbone, "translate_state_dict"):
            continue
        prefix += "." if prefix else ""
        own = {
            key.rpartition(".")[0] for key in backbone.state_dict()
        }  # its layers: unknown weights of these layers belong to the backbone too
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            # the file holds a bare network, or a model with the network directly under "backbone."
            outer = "backbone." if any(key.startswith("backbone.") for key in state_dict) else ""
            bare = backbone.translate_state_dict({key[len(outer) :]: value for key, value in state_dict.items() if key.startswith(outer)})
            bare = {prefix + key if key.rpartition(".")[0] in own else outer + key: value for key, value in bare.items()}
            state_dict = {**{key: value for key, value in state_dict.items() if not key.startswith(outer)}, **bare}
        state_dict = backbone.translate_state_dict(state_dict, prefix)
    for prefix, heads in model.named_modules():
        if isinstance(heads, LastStageROIHeads):
            moved = re.compile(rf"^(backbone\.(bottom_up\.)?)?{heads.stage}\.")
            state_dict = {moved.sub(f"{prefix}.res5.", key): value for key, value in state_dict.items()}
    return state_dict
