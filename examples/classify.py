"""What is in pictures: python examples/classify.py PICTURE... [--model FILE]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastmobilenet import Model


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", help="model file (default: the starter model, which knows ten classes)")
    args = parser.parse_args(argv)

    model = Model.load(args.model)
    for path, predictions in zip(args.pictures, model.classify(args.pictures, top=1), strict=True):
        print(f"{path}: {predictions[0].label} ({100 * predictions[0].score:.0f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
