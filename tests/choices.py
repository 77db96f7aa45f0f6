"""Which cases of a product `make test` runs. The others are marked `whole`: `make test-all` runs them.

What is chosen depends on the product alone, so it is the same in every run and on every machine. Something added to an axis is tried at once.
"""

from typing import Any, Collection, Iterable, Sequence

import pytest

from backbones.registry import FAMILIES

# the first row of a family's table is its smallest network, or nearly: it stands for the family where structure, not size, is what matters
SMALLEST = [next(iter(family.specs)) for family in FAMILIES.values() if not family.prefix]
# those that take seconds to trace and to run are left to `make test`
QUICK = [name for name in SMALLEST if not name.startswith(("MAE-DET", "DetNAS"))]


def turns(*axes: Sequence, times: int = 1, start: int = 0) -> list[tuple]:
    """Cases in which each value of each axis stands ``times`` times or more: all axes go round together, those of fewer values more often.

    After each round of the longest axis the others stand one further; ``start`` sets how far they are at first, so two tests pair differently.
    """
    longest = max(map(len, axes))
    rounds = (divmod(i, longest) for i in range(times * longest))
    return [tuple(axis[(i if len(axis) == longest else i + r + start) % len(axis)] for axis in axes) for r, i in rounds]


def share(values: Iterable, number: int, of: int = 4) -> list:
    """The ``number``-th of so many shares of ``values``: tests with other numbers try the others."""
    return list(values)[number % of :: of]


def cases(product: Iterable, tried: Collection, daily: Collection | None = None) -> list[Any]:
    """The parameters of a test: those that are not ``tried`` are marked `whole`, and those not in ``daily``, if given, `slow`."""
    params = []
    for case in product:
        marks = [] if case in tried else [pytest.mark.whole]
        if daily is not None and case not in daily:
            marks.append(pytest.mark.slow)
        params.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks))
    return params
