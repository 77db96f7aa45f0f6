"""Who may import whom: the layers of docs/architecture.md, from the ground up."""

import ast
import glob
import os
import re

from conftest import ROOT


def layers():
    """The parts of each layer, from the page's table; the lowest first."""
    with open(os.path.join(ROOT, "docs", "architecture.md"), encoding="utf-8") as f:
        rows = re.findall(r"^\| \d \| .*?\| (.*?) \|$", f.read(), re.M)
    return [re.findall(r"`(\w+)`", row) for row in reversed(rows)]


def imports(path, package):
    """The parts of the package that a file imports, in functions too."""
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*module, alias.name] for alias in node.names] if len(module) == 1 else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        yield from (name[1] for name in names if name[0] == "backbones" and len(name) > 1)


def test_nothing_imports_what_stands_above_it():
    levels = {part: level for level, parts in enumerate(layers()) for part in parts}
    found = set()
    for path in glob.glob(os.path.join(ROOT, "backbones", "**", "*.py"), recursive=True):
        own = os.path.relpath(path, ROOT)[: -len(".py")].split(os.sep)
        if own[1] in ("__init__", "__main__"):  # the package's own face takes what it shows from everywhere
            continue
        assert own[1] in levels, f"{own[1]} stands in no layer of docs/architecture.md"
        for part in imports(path, own[:-1]):
            if part in levels and levels[part] > levels[own[1]]:
                found.add(f"{'/'.join(own)} imports {part}")
    assert not found
    assert len(levels) >= 30 and levels["errors"] == 0
