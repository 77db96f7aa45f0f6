"""Makes the digits data sets: easy scenes ("digits") or crowded ones ("digits_crowd"). Their first use in a config does so as well."""

from tqdm import tqdm

from ..data import digits
from . import parser_of, program, run


def make(folder: str = "", which: str = "digits") -> str:
    """`digits.generate` with a progress bar."""
    return digits.generate(folder, lambda scenes: tqdm(scenes, desc=which, unit="scene"), which)


def main() -> None:
    parser = parser_of(program("digits"), __doc__)
    parser.add_argument(
        "--output", default="", metavar="DIR", help="the folder to make (default: the set's name in $DETECTRON2_DATASETS, or in datasets)"
    )
    parser.add_argument("--set", default="digits", choices=digits.SETS, help="which scenes (default: %(default)s)")
    args = parser.parse_args()
    splits = digits.SETS[args.set].splits
    print(f"{make(args.output, args.set)}: {', '.join(f'{args.set}_{split} {count} scenes' for split, count in splits.items())}")


if __name__ == "__main__":
    run(main)
