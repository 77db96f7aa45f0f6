"""Which keypoints swap when an image is flipped."""

import re
from typing import Sequence

_SIDES = (("left", "right"), ("l", "r"))
# a side stands at the beginning or the end of a word: left_eye, leftEye, Left Eye, eye_l, L-Eye, LEye
_WORD = {
    "left": r"(?:(?<![A-Za-z])left|Left|LEFT|left(?![a-z]))",
    "right": r"(?:(?<![A-Za-z])right|Right|RIGHT|right(?![a-z]))",
    "l": r"(?:(?<![A-Za-z0-9])[lL](?![a-z0-9])|(?<=[a-z0-9])L(?![A-Za-z]))",
    "r": r"(?:(?<![A-Za-z0-9])[rR](?![a-z0-9])|(?<=[a-z0-9])R(?![A-Za-z]))",
}


def flip_pairs(names: Sequence[str], stated: Sequence[Sequence[str]] = ()) -> tuple[list[tuple[str, str]], str]:
    """(pairs of left and right names, why they are unknown or "").

    ``stated`` are pairs to use instead. A name without a side is in the middle, if others have sides.
    """
    if stated:
        return [(str(a), str(b)) for a, b in stated], ""
    pairs, alone, known = [], [], set(names)
    for name in names:
        for left, right in _SIDES:
            if re.search(_WORD[left], name):
                other = _other_side(name, left, right)
                pairs.append((name, other)) if other in known else alone.append(name)
                break
    taken = {name for pair in pairs for name in pair}
    alone += [name for name in names if name not in taken and any(re.search(_WORD[right], name) for _, right in _SIDES)]
    if alone:
        return [], f"keypoint {alone[0]!r} has a side but no counterpart"
    if not pairs and len(names) > 1:
        return [], "no keypoint has left or right in its name"
    return pairs, ""


def _other_side(name: str, left: str, right: str) -> str:
    def swap(match: re.Match) -> str:
        found = match.group()
        return right.upper() if found.isupper() else right.capitalize() if found[0].isupper() else right

    return re.sub(_WORD[left], swap, name, count=1)
