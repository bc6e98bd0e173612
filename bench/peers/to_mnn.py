"""ONNX file -> .mnn file, through the converter in MNN's wheel."""

from __future__ import annotations

from pathlib import Path


def convert(onnx_file: Path, mnn_file: Path) -> None:
    """Writes `mnn_file` (float32 weights). Raises RuntimeError where the converter makes no file.

    The wheel's `mnnconvert` command is a wrapper of this native call that also installs a logging package with pip
    and reports the conversion to a server; a benchmark must do neither.
    """
    import _tools

    mnn_file.unlink(missing_ok=True)
    files = ["--modelFile", str(onnx_file), "--MNNModel", str(mnn_file)]
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "bench"])
    if not mnn_file.is_file():
        raise RuntimeError("MNN's converter made no file; its messages above say why")
