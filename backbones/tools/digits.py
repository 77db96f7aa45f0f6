"""Makes the digits data sets (which the first use of digits_train or digits_val does as well)."""

from tqdm import tqdm

from ..data import digits
from . import parser_of, program, run


def make(folder: str = "") -> str:
    """`digits.generate` with a progress bar."""
    return digits.generate(folder, lambda scenes: tqdm(scenes, desc="digits", unit="scene"))


def main() -> None:
    parser = parser_of(program("digits"), __doc__)
    parser.add_argument(
        "--output", default="", metavar="DIR", help="the folder to make (default: digits in $DETECTRON2_DATASETS, or in datasets)"
    )
    args = parser.parse_args()
    print(f"{make(args.output)}: {', '.join(f'digits_{split} {count} scenes' for split, count in digits.SPLITS.items())}")


if __name__ == "__main__":
    run(main)
