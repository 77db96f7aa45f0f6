"""Weights as other projects released them: their key names become ours wherever a state dict is loaded."""

import re
from typing import Mapping, Pattern, Sequence

from torch import Tensor, nn

from .errors import UserError

# what data-parallel training, torch.compile and MMRazor put in front of a model's keys, and what a detector puts in front of its backbone's
_WRAPPERS = re.compile(r"^((module|_orig_mod|architecture(\.model)?)\.)+")
_OUTER = re.compile(r"^((module|_orig_mod|architecture|model|backbone|bottom_up|body)\.)+")
_NOTHING = re.compile(r"(?!)")


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers. Raises UserError where two entries become one."""
    result: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        _put(result, _WRAPPERS.sub("", key), key, value)
    return result


def _put(result: dict[str, Tensor], new: str, key: str, value: Tensor) -> None:
    if new in result:
        raise UserError(f"checkpoint holds {new!r} twice, under two names; the second is {key!r}")
    result[new] = value


class ReleasedWeights(nn.Module):
    """A network that loads released checkpoints: directly, inside a detector, or by detectron2's own checkpointer.

    Each family's class says what its checkpoints look like: it sets the attributes below, and overrides `translate_key` and `complete`.
    """

    # the projects whose key names `translate_key` knows
    layouts: Sequence[str] = ("released",)
    # those whose weights take the images that this project's configs give: they load as they are, the others are converted first
    native_layouts: Sequence[str] = ("released",)
    # keys of a released layout whose weights expect images in another order than this project's other configs give: (keys, order)
    released_images: tuple[Pattern[str], str] = (_NOTHING, "")
    # how the weights are used, where their shapes do not say it: saved beside them, and compared when they are loaded
    conventions: dict[str, str] = {}
    # keys behind the last feature, which detection has no use for
    classifier: Pattern[str] = _NOTHING

    def translate_key(self, key: str, layout: str) -> str:
        """A key of a checkpoint in one of the `layouts` as ours; keys that are not of that layout come back as they are."""
        return key

    def complete(self, state_dict: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
        """A translated state dict with what that layout's network does not have filled in, so that ours computes the same."""
        return state_dict

    def translate_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str = "", layouts: Sequence[str] = ()) -> dict[str, Tensor]:
        """The entries under ``prefix`` with this network's key names, the others as they are; from the native ``layouts`` unless named.

        Drops batch counters where this network's norms keep none. Raises UserError where two entries become one.
        """
        own = set(self.state_dict())
        result: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            new = key
            if key.startswith(prefix):
                relative = key[len(prefix) :]
                if relative not in own:
                    relative = _OUTER.sub("", relative)
                    for layout in layouts or self.native_layouts:
                        relative = self.translate_key(relative, layout)
                if relative.endswith("num_batches_tracked") and relative not in own:
                    continue
                new = prefix + relative
            _put(result, new, key, value)
        return result

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        translated = self.translate_state_dict(state_dict, prefix)
        state_dict.clear()
        state_dict.update(translated)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
