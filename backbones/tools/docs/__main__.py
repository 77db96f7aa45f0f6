"""Generates model_zoo.md, tables of figures, docs/reference, docs/findings.md and the notebook.

Run it in the project's folder, after a change of a key, a flag, an error's code, a finding or a figure. It leaves files that are up to date.
"""

import os

from ...errors import UserError
from ...files import write_whole
from .. import parser_of, program, run
from . import figures, reference


def written() -> dict[str, str]:
    """Path -> text of every page that is generated, in whole or in part. Raises UserError outside the project's folder."""
    missing = [path for path in (*figures.PAGES, "mkdocs.yml") if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{missing[0]!r} does not exist here: run this in the project's checkout", "missing-file")
    pages = {"model_zoo.md": figures.render(), **{path: render() for path, render in reference.PAGES.items()}}
    for page in figures.PAGES:
        with open(page, encoding="utf-8") as f:
            pages[page] = figures.filled(page, f.read())
    return pages


def main() -> None:
    parser_of(program("docs"), __doc__).parse_args()
    for path, text in written().items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_whole(path, text)
        print(path)


if __name__ == "__main__":
    run(main)
