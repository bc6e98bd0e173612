"""Transfer learning: a network of one's own classes, from a trained MobileNet and scikit-learn, in one .fmn file.

The network gives features, scikit-learn trains a linear classifier on them, and ``Model.with_head`` puts it behind the
network. Here with CIFAR-10, as .npz files with the arrays ``images`` (n, 32, 32, 3), uint8, and ``labels`` (n,); or
with ``jpeg``, the bytes of JPEG files in a row, ``offsets`` (n + 1,) and ``labels``:

    python examples/transfer_learning.py mobilenet_v2.tflite cifar10_train.npz cifar10_test.npz --out cifar10.fmn
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmobilenet import FeatureExtractor, Model

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(path: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures of a file, or all, uint8 (n, h, w, 3), and their classes. They are taken from all over the
    file: it may be in the order of the classes."""
    with np.load(path, allow_pickle=False) as file:
        arrays = set(file)
        if "labels" not in arrays or not ({"images"} <= arrays or {"jpeg", "offsets"} <= arrays):
            raise SystemExit(f"{path}: has the arrays {', '.join(sorted(arrays))}; expected images and labels")
        labels = file["labels"].reshape(-1)
        taken = np.arange(len(labels))
        if count is not None and count < len(labels):
            taken = np.linspace(0, len(labels) - 1, count).astype(int)
        if "images" in arrays:
            images = file["images"][taken]
        else:
            data, ends = file["jpeg"].tobytes(), file["offsets"]
            images = np.stack([decode(data[ends[i] : ends[i + 1]]) for i in taken])
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise SystemExit(f"{path}: images are {images.dtype} {images.shape}; expected uint8 (n, height, width, 3)")
    return images, labels[taken]


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the network that gives the features: .fmn, .tflite, .onnx, .safetensors, .pth")
    parser.add_argument("train", help=".npz file of the pictures to train with")
    parser.add_argument("test", help=".npz file of the pictures to test with")
    parser.add_argument("--arch", help="architecture, for a file that holds weights only")
    parser.add_argument("--size", type=int, help="resize pictures to this size (default: the model's own)")
    parser.add_argument("--count", type=int, help="use COUNT pictures of each file only")
    parser.add_argument("--out", default="transfer.fmn", help="the file to write (default: transfer.fmn)")
    args = parser.parse_args(argv)

    x, y = read(args.train, args.count)
    model = Model.load(args.model, arch=args.arch)
    start = time.perf_counter()
    trained = make_pipeline(
        FeatureExtractor(model, size=args.size),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=1000),
    ).fit(x, y)
    print(f"trained with {len(x)} pictures in {time.perf_counter() - start:.1f} s")

    # The head sees features as the network gives them: the scaling goes into its weights.
    scaler, classifier = trained[1], trained[2]
    weights = classifier.coef_ / scaler.scale_
    bias = classifier.intercept_ - weights @ scaler.mean_
    names = (
        [CLASSES[i] for i in classifier.classes_] if len(CLASSES) > max(classifier.classes_) else classifier.classes_
    )
    head = model.with_head(weights, bias, labels=names)
    head.save(args.out)

    x, y = read(args.test, args.count)
    saved = Model.load(args.out)
    options = {} if args.size is None else {"size": args.size}
    found = classifier.classes_[saved.run(x, **options).argmax(axis=1)]
    print(f"{args.out}: {100 * (found == y).mean():.2f} % of {len(x)} test pictures are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
