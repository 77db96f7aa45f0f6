"""A page as a notebook: its blocks of Python and of commands become cells, all else is text."""

import json
import re
from typing import Any

_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$\n?", re.M | re.S)


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.strip("\n").splitlines(keepends=True), **code}


def notebook(path: str) -> str:
    """The notebook of a Markdown page, as the text of a file: nbformat 4.5, without outputs. Commands are cells of %%bash."""
    with open(path, encoding="utf-8") as f:
        title, _, text = f.read().partition("\n")
    parts = _BLOCK.split(f"{title}\n\n*Written from {path} by `python -m backbones.tools.docs`.*\n{text}")
    cells = [("markdown", parts[0])]
    for language, block, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        cells.append(("code", block if language == "python" else f"%%bash\nset -e\n{block}"))
        if text.strip():
            cells.append(("markdown", text))
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    content = {"cells": [_cell(i, *cell) for i, cell in enumerate(cells)], "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
