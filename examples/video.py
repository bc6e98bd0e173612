"""What is in a video, or in front of a webcam, frame by frame.

    python examples/video.py clip.mp4
    python examples/video.py /dev/video0 --format v4l2      (a webcam on Linux)

A line is printed whenever what is seen changes. Needs PyAV: pip install 'fastmobilenet[video]'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import av
import numpy as np

from fastmobilenet import Model


def frames(source: str, kind: str | None) -> Iterator[tuple[float, np.ndarray]]:
    """The time of every frame in seconds, and its pixels, uint8 (h, w, 3)."""
    with av.open(source, format=kind) as container:
        for frame in container.decode(video=0):
            yield frame.time or 0.0, frame.to_ndarray(format="rgb24")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a video file, a stream or a camera")
    parser.add_argument("--model", help="model file (default: the starter model, which knows ten classes)")
    parser.add_argument("--format", help="what the source is, where its name does not say: v4l2 for a webcam")
    parser.add_argument("--every", type=int, default=1, help="look at every N-th frame only (default: 1)")
    parser.add_argument("--smooth", type=float, default=0.7, help="share of the past in the mean (default: 0.7)")
    args = parser.parse_args(argv)

    model = Model.load(args.model)
    mean: np.ndarray | None = None
    seen, count, busy = -1, 0, 0.0
    try:
        for i, (seconds, pixels) in enumerate(frames(args.source, args.format)):
            if i % args.every:
                continue
            start = time.perf_counter()
            scores = model.probabilities(pixels)
            busy += time.perf_counter() - start
            count += 1
            # One frame may be blurred: the mean of the last few does not jump.
            mean = scores if mean is None else args.smooth * mean + (1 - args.smooth) * scores
            best = int(mean.argmax())
            if best != seen:
                label = model.labels[best] if model.labels else f"class {best}"
                print(f"{seconds:8.2f} s  {label}  {100 * mean[best]:.0f} %", flush=True)
                seen = best
    except KeyboardInterrupt:
        pass
    if count:
        print(f"{count} frames, {1e3 * busy / count:.1f} ms each with resizing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
