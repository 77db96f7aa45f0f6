"""Writes docs/findings.md, the table of what can be odd or wrong about data, from backbones/data/findings.py."""

from tabulate import tabulate

from ..data.findings import KINDS
from ..files import write_whole
from . import parser_of, program, run

_HEAD = """# What is found in data

Written by `python -m backbones.tools.findings_table`; do not edit. [Train on my data](train-my-data.md) shows how you come across these.

Training says in one line what it left out and repaired. `python -m backbones.tools.doctor` lists the same findings, and some of its own.
"""
_REFUSED = "An error names the first places. A key, where there is one, changes what is done. Of `train and test` only the doctor knows."
# heading, what a reader learns from the table, and which rows it has
_PARTS = (
    ("Training stops", _REFUSED, lambda kind: kind.severity == "error"),
    ("Left out", "The entry is not used, and counted.", lambda kind: kind.effect == "left out"),
    ("Repaired", "There is one sensible meaning, which is taken and counted.", lambda kind: kind.effect == "repaired"),
    ("Said", "Nothing is changed.", lambda kind: kind.severity != "error" and kind.effect in ("", "read in part")),
)


def render() -> str:
    text = _HEAD
    for heading, about, belongs in _PARTS:
        rows = [
            (name, kind.message, "" if kind.advice == "nothing" else kind.advice, f"`{kind.key}`" if kind.key else "")
            for name, kind in KINDS.items()
            if belongs(kind)
        ]
        headers = ("kind", "what it is", "what you can do", "key")
        kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
        table = tabulate([[row[i] for i in kept] for row in rows], [headers[i] for i in kept], "pipe", disable_numparse=True)
        text += f"\n## {heading}\n\n{about}\n\n{table}\n"
    return text


def main() -> None:
    parser = parser_of(program("findings_table"), __doc__)
    parser.add_argument("--output", default="docs/findings.md", metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args()
    write_whole(args.output, render())
    print(args.output)


if __name__ == "__main__":
    run(main)
