"""Reports what a checkpoint filled in a model, and says whether that is enough."""

import re
from dataclasses import dataclass
from typing import List, Tuple

from tabulate import tabulate

from ..errors import UserError

PARTIAL = "To load what fits all the same: --allow-partial-weights"
# training may start without these in a backbone's file: sampling offsets begin at zero
_LEARNED = re.compile(r".*\.(offset|conv2_offset)\.\w+$")
# rows of the table: the first pattern that a key matches names its part
_PARTS = (
    ("backbone", r"backbone\.(?!fpn_|top_block\.)|roi_heads\.res5\."),  # detectors without FPN run its last stage in their heads
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
    """What one checkpoint did to one model. The lists hold keys of the model's state dict, and ``unused`` keys of the file."""

    path: str
    total: List[str]
    new: List[str]
    mismatched: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]]  # key, shape in the file, shape in the model
    unused: List[str]

    def unfilled(self, *parts: str) -> List[str]:
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
                lines.append(f"  {what}: {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else ""))
        return f"Weights loaded from {self.path}:\n" + "\n".join(lines)

    def refuse(self, require: str, hint: str = PARTIAL) -> None:
        """Raises UserError where the file filled less than ``require``, see `GatedCheckpointer`; ``hint`` says what to do."""
        if require == "nothing":
            return
        if require == "backbone":
            strange = [key for key in self.unused if part_of(key) in ("FPN", "backbone") and key.endswith(("running_mean", "running_var"))]
            strange = [key for key in strange if f"{key.rpartition('.')[0]}.weight" in self.total]
            if strange:
                raise UserError(
                    f"checkpoint {self.path!r} is of a network with batch norms, whose statistics ({strange[0]}, ...) have no place in "
                    f"this one's norms: set the backbone's NORM to FrozenBN, BN or SyncBN, or MODEL.WEIGHTS ''. {hint}",
                    "misfit-weights",
                )
        parts = [require] if require == "backbone" else []
        keys = self.unfilled(*parts)
        if not keys or parts and all(_LEARNED.match(key) for key in keys):
            return
        total = [key for key in self.total if not parts or part_of(key) in parts]
        shapes = {key: f" (file {file}, model {own})" for key, file, own in self.mismatched}
        raise UserError(
            f"checkpoint {self.path!r} does not fit: {len(keys)} of {len(total)} weights of the {'backbone' if parts else 'model'} would keep "
            f"their initial values, the first is {keys[0]}{shapes.get(keys[0], '')}. {hint}",
            "misfit-weights",
        )
