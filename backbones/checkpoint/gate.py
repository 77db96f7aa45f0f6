"""The load gate: a table of what a checkpoint filled, and refusal of weights that do not fit.

detectron2 loads whatever matches and logs the rest; a file of another network then trains or evaluates from random weights in silence.
"""

import contextlib
import logging
import os
import re
import zipfile
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from iopath.common.download import download
from iopath.common.file_io import file_lock, get_cache_dir
from tabulate import tabulate
from torch import nn

from ..detectors import LastStageROIHeads
from ..errors import UserError
from ..files import replacing, write_whole
from ..layouts import without_wrappers
from .reading import read_checkpoint

# rows of the table: the first pattern that a key matches names its part
_PARTS = (
    ("FPN", r"backbone\.(fpn_|top_block\.)"),
    ("backbone", r"backbone\.|roi_heads\.res5\."),  # detectors without FPN run its last stage in their heads
    ("RPN", r"proposal_generator\."),
    ("box head", r"roi_heads\.box_"),
    ("mask head", r"roi_heads\.mask_"),
    ("keypoint head", r"roi_heads\.keypoint_"),
    ("semantic head", r"sem_seg_head\."),
    ("head", r"head\."),
)


# what a backbone's file need not have for training: sampling offsets, which start at zero
_LEARNED = re.compile(r".*\.(offset|conv2_offset)\.\w+$")


def part_of(key: str) -> str:
    return next((name for name, pattern in _PARTS if re.match(pattern, key)), "other")


@dataclass
class LoadReport:
    """What one checkpoint did to one model; every list holds state-dict keys of the model, ``unused`` of the file."""

    path: str
    total: List[str]
    new: List[str]
    mismatched: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]]  # key, shape in the file, shape in the model
    unused: List[str]

    def unfilled(self, *parts: str) -> List[str]:
        """The keys that kept their initial values, of the named parts or of all."""
        keys = self.new + [key for key, _, _ in self.mismatched]
        return [key for key in keys if not parts or part_of(key) in parts]

    def table(self) -> str:
        rows = []
        names = dict.fromkeys([name for name, _ in _PARTS] + ["other"])
        wrong = [key for key, _, _ in self.mismatched]
        for name in sorted(names, key=lambda name: (name != "backbone", list(names).index(name))):
            count = [sum(part_of(key) == name for key in keys) for keys in (self.total, self.new, wrong, self.unused)]
            if any(count):
                rows.append((name, f"{count[0] - count[1] - count[2]}/{count[0]}", *count[1:]))
        lines = [tabulate(rows, headers=("part", "loaded", "new", "wrong shape", "unused in file"), tablefmt="pipe")]
        lines += [f"  wrong shape: {key}: file {file}, model {model}" for key, file, model in self.mismatched[:5]]
        for what, keys in (("new", self.new), ("unused", self.unused)):
            if keys:
                lines.append(f"  {what}: {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else ""))
        return f"Weights loaded from {self.path}:\n" + "\n".join(lines)


class GatedCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that reads files safely, logs a `LoadReport`, and refuses weights that do not fit.

    Args:
        require: what a loaded file must fill completely: "all" of the model (evaluation, resuming), its "backbone" (training), or
            "nothing". Anything less raises UserError.

    After a load, ``report`` is its `LoadReport`.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, require: str = "backbone", **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        assert require in ("all", "backbone", "nothing"), require
        self.require = require
        self.report: Optional[LoadReport] = None
        self._hint = ""

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Writes ``name``.pth whole or not at all, and then, with ``tag``, that it is the last one.

        Raises UserError where it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        conventions = _conventions(self.model)
        if conventions:
            kwargs["conventions"] = conventions
        if "://" in self.save_dir:  # as far as its handler does
            super().save(name, **kwargs)
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        rest = {**{key: each.state_dict() for key, each in self.checkpointables.items()}, **kwargs}
        data = {"model": self.model.state_dict(), **_without_scalars(rest)}
        logging.getLogger(__name__).info(f"Saving checkpoint to {path}")
        try:
            with replacing(path) as partial, open(partial, "wb") as f:
                torch.save(data, f)
        except (OSError, RuntimeError) as error:  # torch's writer has its own words for a full disk
            raise UserError(
                f"checkpoint {path!r} cannot be written: {' '.join(str(error).split())[:200]}. The earlier ones are whole"
            ) from error
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def forget_last_checkpoint(self) -> None:
        """What another run has left in the folder is not gone on from."""
        if self.save_dir and "://" not in self.save_dir:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, "last_checkpoint"))

    def is_writing(self, name: str) -> bool:
        """Whether some process is writing ``name``.pth."""
        return os.path.exists(os.path.join(self.save_dir, f"{name}.pth.partial"))

    def is_last(self, name: str) -> bool:
        """Whether ``name``.pth is written, by whichever process, and is the last checkpoint of the folder."""
        with contextlib.suppress(OSError), open(os.path.join(self.save_dir, "last_checkpoint")) as f:
            return f.read() == f"{name}.pth"
        return False

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
        else:
            write_whole(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last checkpoint, or where that was not written to its end, the last one that was."""
        path = super().get_checkpoint_file()
        if not path or "://" in path or _is_whole(path):
            return path
        numbered = [p for p in self.get_all_checkpoint_files() if re.fullmatch(r"model_\d+\.pth", os.path.basename(p))]
        for other in sorted(numbered, reverse=True):
            if _is_whole(other):
                logging.getLogger(__name__).warning(f"checkpoint {path!r} was not written to its end: going on from {other!r}")
                return other
        return path

    def load(self, path: str, checkpointables=None) -> Dict[str, Any]:
        self._loading = path
        # training goes on with the weights themselves; all else is to have their average, where a run has kept one
        self._averaged = checkpointables is not None or "trainer" not in self.checkpointables
        if "://" in path:
            path = fetch(path, self.path_manager)
        elif path and not self.path_manager.isfile(path.partition("?")[0]):
            raise UserError(f"checkpoint {path!r} is not there")
        try:
            return super().load(path) if checkpointables is None else super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # detectron2 leaves it set when a load fails

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        if resume and self.has_checkpoint():
            path = self.get_checkpoint_file()
            if self.require != "nothing":
                self.require = "all"
            rest = self.load(path)
            if "trainer" in self.checkpointables and "trainer" not in self._found:
                raise UserError(
                    f"--resume: {path!r}, the last checkpoint of {self.save_dir!r}, holds weights but not how far training had come: "
                    "begin with it by MODEL.WEIGHTS, without --resume"
                )
            return rest
        return self.load(path, checkpointables=[])

    def _load_file(self, filename: str) -> Dict[str, Any]:
        try:
            data = self._interpret(filename, read_checkpoint(filename))
        except UserError as error:
            if "://" not in self._loading:
                raise
            if os.path.abspath(filename).startswith(os.path.abspath(get_cache_dir())) and os.path.isfile(filename):
                os.remove(filename)  # so that the next run downloads it again
            raise UserError(f"{error} (downloaded from {self._loading})") from error
        self._found = set(data)
        average = data.pop("ema", None) if self._averaged else None
        if isinstance(average, dict):
            logging.getLogger(__name__).info(f"{filename} holds an average of the weights (MODEL_EMA), which is taken")
            data["model"] = {key[len("module.") :]: value for key, value in average.items() if key.startswith("module.")}
        weights = data["model"]
        if not isinstance(weights, dict):
            raise UserError(f"checkpoint {filename!r}: 'model' is a {type(weights).__name__}, not a state dict")
        for key, value in weights.items():
            if not isinstance(key, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                known = next((name for name in ("state_dict", "model_state", "model_state_dict") if name in weights), None)
                hint = f": its weights stand under {known!r}, which is another project's layout" if known else ""
                raise UserError(f"checkpoint {filename!r} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor{hint}")
        return data

    def _interpret(self, filename: str, data: Dict[str, Any]) -> Dict[str, Any]:
        """A file's contents in detectron2's form: the weights under "model", beside what says how to match them."""
        if filename.endswith(".pkl"):
            if "model" in data and "__author__" in data:  # detectron2's zoo
                return data
            data = data.get("blobs", data)  # Detectron's: detectors have "blobs", classifiers are flat
            blobs = {key: value for key, value in data.items() if not str(key).endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):  # pycls
            if "model_state" not in data:
                raise UserError(f"checkpoint {filename!r} has no 'model_state', which files of pycls have")
            return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
        alone = next((key for key in ("ema", "model_ema") if "model" not in data and isinstance(data.get(key), dict)), None)
        data = dict(data) if "model" in data else {"model": data[alone] if alone else data}
        query = self._parsed_url_during_load.query
        if query not in ("", "matching_heuristics=True"):
            raise UserError(f"checkpoint {self._loading!r}: unknown query {query!r}. Allowed: 'matching_heuristics=True'")
        if query:
            data["matching_heuristics"] = True
        return data

    def _load_model(self, checkpoint: Dict[str, Any]):
        model = self.model.module if hasattr(self.model, "module") else self.model
        self._convert_ndarray_to_tensor(checkpoint["model"])
        if "preprocessing" in checkpoint and self.require != "nothing":
            _check_preprocessing(model, checkpoint["preprocessing"], self._loading)
        if self.require != "nothing":
            _check_conventions(model, checkpoint.get("conventions"), self._loading)
            _check_released_images(model, checkpoint["model"], self._loading)
        own = model.state_dict()
        weights = _with_our_names(model, checkpoint["model"])
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        if checkpoint.pop("matching_heuristics", False):
            weights = align_and_update_state_dicts(own, weights, c2_conversion=from_caffe2)
        checkpoint["model"] = dict(weights)
        try:
            incompatible = super()._load_model(checkpoint)
        except RuntimeError as error:  # torch refuses what only it can compare
            raise UserError(f"checkpoint {self._loading!r} does not fit the model: {' '.join(str(error).split())[:300]}") from error
        # counters of batches are no weights, preprocessing is the config's, and Detectron folded its statistics into the affine weights
        ignored = re.compile(
            r"(.*\.num_batches_tracked|pixel_mean|pixel_std|.*anchor_generator\..*" + (r"|.*\.running_(mean|var)" if from_caffe2 else "") + ")$"
        )
        report = LoadReport(
            path=self._loading,
            total=[key for key in own if not ignored.match(key)],
            # torch's own list is not enough: frozen norms fill in statistics that a file lacks
            new=[key for key in own if key not in weights and not ignored.match(key)],
            mismatched=[(key, tuple(file), tuple(shape)) for key, file, shape in incompatible.incorrect_shapes],
            unused=[key for key in incompatible.unexpected_keys if not ignored.match(key)],
        )
        self.report = report
        self._hint = _overrides_of(checkpoint)
        logging.getLogger(__name__).info(report.table())
        self._refuse(report)
        return incompatible

    def _log_incompatible_keys(self, incompatible) -> None:
        """The report has said it."""

    def _refuse(self, report: LoadReport) -> None:
        if self.require == "backbone":
            own = set(report.total)
            strange = [key for key in report.unused if part_of(key) in ("FPN", "backbone") and key.endswith(("running_mean", "running_var"))]
            strange = [key for key in strange if f"{key.rpartition('.')[0]}.weight" in own]
            if strange:
                raise UserError(
                    f"checkpoint {report.path!r} is of a network with batch norms, whose statistics ({strange[0]}, ...) have no place in "
                    "this one's norms: set the backbone's NORM to FrozenBN, BN or SyncBN, or MODEL.WEIGHTS ''. "
                    "To load what fits all the same: --allow-partial-weights"
                )
        if self.require == "all":
            keys, total, what = report.unfilled(), report.total, "the model"
        elif self.require == "backbone":
            keys = report.unfilled("backbone")
            keys = [] if all(_LEARNED.match(key) for key in keys) else keys
            total, what = [key for key in report.total if part_of(key) == "backbone"], "the backbone"
        else:
            return
        if not keys:
            return
        shapes = {key: (file, own) for key, file, own in report.mismatched}
        first = f"{keys[0]} (file {shapes[keys[0]][0]}, model {shapes[keys[0]][1]})" if keys[0] in shapes else keys[0]
        raise UserError(
            f"checkpoint {report.path!r} does not fit: {len(keys)} of {len(total)} weights of {what} would keep their initial values, "
            f"the first is {first}. {self._hint}To load what fits all the same: --allow-partial-weights"
        )


def _without_scalars(value: Any) -> Any:
    """With numpy's numbers as Python's: a file with such objects is one that no `torch.load` of weights alone reads."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _without_scalars(item) for key, item in value.items()}
    return type(value)(map(_without_scalars, value)) if type(value) in (list, tuple) else value


def _is_whole(path: str) -> bool:
    """Whether a file of torch's has its end; of its older format, which does not tell, whether it has a beginning."""
    try:
        with open(path, "rb") as f:
            start = f.read(2)
    except OSError:
        return False
    return zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"


def fetch(url: str, path_manager) -> str:
    """Downloads into detectron2's cache, once; keeps a server's own query (``?dl=1``), which detectron2 takes for its own and drops."""
    bare, _, query = url.partition("?")
    ours = query == "matching_heuristics=True"
    try:
        if url.startswith(("http://", "https://")):
            parsed = urlparse(url)
            folder, filename = os.path.split(os.path.join(get_cache_dir(), parsed.netloc, parsed.path.lstrip("/")))
            path = os.path.join(folder, filename)
            os.makedirs(folder, exist_ok=True)
            with file_lock(path):  # one process downloads, the others wait and find it
                if not os.path.isfile(path):
                    download(bare if ours else url, folder, filename=filename)
        else:
            path = path_manager.get_local_path(bare)
            if not os.path.isfile(path):
                raise FileNotFoundError("no such file, or no such kind of address")
    except UserError:
        raise
    except Exception as error:  # each of iopath's handlers has its own
        raise UserError(f"checkpoint {url!r} cannot be downloaded: {' '.join(str(error).split())[:300]}") from error
    return f"{path}?{query}" if ours else path


def _overrides_of(checkpoint: Dict[str, Any]) -> str:
    """What a converted file says that its config needs, as a sentence."""
    provenance = checkpoint.get("provenance")
    overrides = provenance.get("overrides") if isinstance(provenance, dict) else None
    if not overrides or not isinstance(overrides, list) or not all(isinstance(item, (str, int, float)) for item in overrides[:20]):
        return ""
    return f"The file says that its config needs {' '.join(map(str, overrides[:20]))[:300]}. "


def _check_preprocessing(model: nn.Module, stated: Any, path: str) -> None:
    """Refuses weights that expect other images than ``model`` gives them: nothing else would tell, but for the AP."""
    if not hasattr(model, "pixel_mean") or not isinstance(stated, dict):
        return
    mine = {
        "INPUT.FORMAT": getattr(model, "input_format", stated.get("format")),
        "MODEL.PIXEL_MEAN": model.pixel_mean.flatten().tolist(),
        "MODEL.PIXEL_STD": model.pixel_std.flatten().tolist(),
    }
    theirs = {"INPUT.FORMAT": stated.get("format"), "MODEL.PIXEL_MEAN": stated.get("pixel_mean"), "MODEL.PIXEL_STD": stated.get("pixel_std")}
    differ = [key for key, value in theirs.items() if not _same(value, mine[key])]
    if differ:
        wanted = " ".join(f'{key} "{theirs[key]}"' for key in differ)
        raise UserError(
            f"checkpoint {path!r} expects other images than the config gives it: set {wanted}. To load it all the same: --allow-partial-weights"
        )


def _conventions(model: nn.Module) -> Dict[str, str]:
    return {key: value for module in model.modules() for key, value in getattr(module, "conventions", {}).items()}


def _check_conventions(model: nn.Module, stated: Any, path: str) -> None:
    """Refuses weights that another network of the same shapes was trained with."""
    for key, value in _conventions(model).items():
        theirs = stated.get(key, value) if isinstance(stated, dict) else value
        if theirs != value:
            raise UserError(
                f"checkpoint {path!r} was trained with {key} {theirs!r}, but the config has {value!r}: set {key} {theirs}. "
                "To load it all the same: --allow-partial-weights"
            )


def _check_released_images(model: nn.Module, weights: Dict[str, Any], path: str) -> None:
    """Refuses released files, which say nothing of their images, in a config that gives them images in another order of channels."""
    for backbone in model.modules():
        keys, order = getattr(backbone, "released_images", (None, ""))
        if order and getattr(model, "input_format", order) != order and any(keys.search(key) for key in weights):
            raise UserError(
                f"checkpoint {path!r} holds weights as released, for {order} images, but INPUT.FORMAT is {model.input_format!r}: set it and the "
                "means in that order, or turn the weights by `python -m convert`. To load it all the same: --allow-partial-weights"
            )


def _same(a: Any, b: Any) -> bool:
    try:
        return a == b or (len(a) == len(b) and bool(np.allclose(np.asarray(a, float), b, rtol=1e-4)))
    except (TypeError, ValueError):
        return False


def _with_our_names(model: nn.Module, state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """Wrappers' prefixes removed, backbone files without a prefix given one, released key names turned into ours."""
    state_dict = without_wrappers(state_dict)
    for prefix, backbone in model.named_modules():
        if not hasattr(backbone, "translate_state_dict"):
            continue
        prefix += "." if prefix else ""
        own = {key.rpartition(".")[0] for key in backbone.state_dict()}  # its layers: a weight too many in one is the backbone's all the same
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            # a file of the bare network, or of a model that has it right under "backbone."
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
