"""Makes the digits data sets (which the first use of digits_train or digits_val does as well)."""

import argparse

from tqdm import tqdm

from ..data import digits
from . import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backbones.tools.digits", description=__doc__)
    parser.add_argument("--output", default="", metavar="DIR", help=f"the folder to make (default: {digits.root()})")
    args = parser.parse_args()
    folder = digits.generate(args.output, lambda scenes: tqdm(scenes, desc="digits", unit="scene"))
    print(f"{folder}: {', '.join(f'digits_{split} {count} scenes' for split, count in digits.SPLITS.items())}")


if __name__ == "__main__":
    run(main)
