"""What runs on bytes and what in floats is said: repr, info, profile, bench; and what to do for int8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import Model, ModelError
from fastmobilenet.cli import main

from .conftest import build_small_graph

PICTURES = np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network in fp32, in int8, and in int8 with a layer in fp32, as .fmn files."""
    folder = tmp_path_factory.mktemp("precision")
    model = Model.from_graph(build_small_graph(), threads=1)
    layer = next(n.name for n in model.graph.nodes if n.op == "conv2d" and n.name != model.graph.nodes[1].name)
    found = {"fp32": model, "int8": model.quantize(PICTURES), "mixed": model.quantize(PICTURES, keep=[layer])}
    for name, each in found.items():
        each.save(folder / f"{name}.fmn")
    return {name: folder / f"{name}.fmn" for name in found}


def test_repr(files: dict[str, Path]) -> None:
    assert "\n  fp32, 1 thread, " in repr(Model.load(files["fp32"], threads=1))
    assert "\n  int8, 1 thread, " in repr(Model.load(files["int8"], threads=1))
    text = repr(Model.load(files["mixed"], threads=1))
    assert "\n  int8, but 1 of " in text and " layers in fp32 (" in text and " and " in text


def test_info(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, whole in (("fp32", "fp32"), ("int8", "int8"), ("mixed", "int8 and fp32")):
        assert main(["info", str(files[name]), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["precision"] == whole
        kinds = {layer["precision"] for layer in facts["layers"] if layer["op"] == "conv2d"}
        assert " and ".join(sorted(kinds, reverse=True)) == whole
        assert main(["info", str(files[name])]) == 0
        assert whole in capsys.readouterr().out


def test_profile_and_bench(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, whole in (("fp32", "fp32"), ("int8", "int8"), ("mixed", "int8 and fp32")):
        model = Model.load(files[name], threads=1)
        profile = model.profile(PICTURES[0], runs=1)
        assert profile.precision == whole and f": {whole}, " in profile.heading()[0]
        kinds = {layer.precision for layer in profile.layers if "conv2d" in layer.ops}
        assert " and ".join(sorted(kinds, reverse=True)) == whole
        weights = sum(layer.work.weight_bytes for layer in profile.layers)
        assert weights < 4 * profile.layers[0].work.output_bytes + 4 * sum(
            v.size for n in model.graph.nodes for v in n.params.values()
        )
        assert main(["bench", "--model", str(files[name]), "--seconds", "0.01", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["precision"] == whole


def test_int8_of_a_float_file_says_what_to_do(files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"holds a network of floats; .*model\.quantize\("):
        Model.load(files["fp32"], precision="int8")
    assert Model.load(files["int8"], precision="int8").graph
