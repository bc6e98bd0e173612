"""Preprocess: what its fields may be, and what is said where they may not."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, Model, Preprocess
from fastmobilenet.preprocess import IMAGENET, LIMIT, MIN_CROP_FRACTION

from .samples import pixels

DENORMAL = 1e-40  # std of this size makes infinities in float32


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"mean": (0, math.nan, 0)}, ValueError, r"mean must be -1e\+06 to 1e\+06 .* but mean\[1\] is nan"),
        ({"mean": (0, 0, math.inf)}, ValueError, r"mean\[2\] is inf"),
        ({"mean": (-math.inf, 0, 0)}, ValueError, r"mean\[0\] is -inf"),
        ({"mean": (1e30, 0, 0)}, ValueError, r"mean\[0\] is 1e\+30"),
        ({"mean": (10**400, 0, 0)}, ValueError, "mean must be -1e"),
        ({"mean": "127"}, TypeError, "mean must be three numbers, one a channel, not '127'"),
        ({"mean": b"abc"}, TypeError, "mean must be three numbers"),
        ({"mean": 127.5}, TypeError, "mean must be three numbers, one a channel, not 127.5"),
        ({"mean": None}, TypeError, "mean must be three numbers"),
        ({"mean": ("1", "2", "3")}, TypeError, "mean must be three numbers"),
        ({"mean": (1j, 0, 0)}, TypeError, "mean must be three numbers"),
        ({"mean": (True, False, True)}, TypeError, "mean must be three numbers"),
        ({"mean": {1.0, 2.0, 3.0}}, TypeError, "mean must be three numbers"),
        ({"mean": {1.0: 0, 2.0: 0, 3.0: 0}}, TypeError, "mean must be three numbers"),
        ({"mean": np.zeros((3, 1))}, TypeError, "mean must be three numbers"),
        ({"mean": np.ma.masked_equal([0.0, 1.0, 2.0], 1.0)}, TypeError, "mean must be three numbers"),
        ({"mean": (1, 2)}, ValueError, r"mean must be three numbers, one a channel, not 2: \(1, 2\)"),
        ({"mean": ()}, ValueError, "mean must be three numbers, one a channel, not 0"),
        ({"std": (1, 2, 3, 4)}, ValueError, "std must be three numbers, one a channel, not 4"),
        ({"std": "127"}, TypeError, "std must be three numbers"),
        ({"std": (1, 0, 1)}, ValueError, r"std must be 1e-06 to 1e\+06 .* but std\[1\] is 0.0"),
        ({"std": (1, 1, -1)}, ValueError, r"std\[2\] is -1.0"),
        ({"std": (math.nan, 1, 1)}, ValueError, r"std\[0\] is nan"),
        ({"std": (math.inf, 1, 1)}, ValueError, r"std\[0\] is inf"),
        ({"std": (DENORMAL, 1, 1)}, ValueError, r"std\[0\] is 1e-40"),
        ({"std": (1e-30, 1, 1)}, ValueError, r"std\[0\] is 1e-30"),
        ({"std": (1e300, 1, 1)}, ValueError, r"std\[0\] is 1e\+300"),
        ({"crop_fraction": 0}, ValueError, "crop_fraction must be 0.01 to 1, not 0"),
        ({"crop_fraction": -0.5}, ValueError, "crop_fraction must be"),
        ({"crop_fraction": 1.001}, ValueError, "crop_fraction must be 0.01 to 1, not 1.001"),
        ({"crop_fraction": 1e-300}, ValueError, "crop_fraction must be"),
        ({"crop_fraction": math.nan}, ValueError, "crop_fraction must be"),
        ({"crop_fraction": math.inf}, ValueError, "crop_fraction must be"),
        ({"crop_fraction": "0.875"}, TypeError, "crop_fraction must be a number, not '0.875'"),
        ({"crop_fraction": None}, TypeError, "crop_fraction must be a number"),
        ({"crop_fraction": True}, TypeError, "crop_fraction must be a number"),
        ({"resize": "crop"}, ValueError, r"resize must be one of \('shorter_side', 'stretch', 'none'\), not 'crop'"),
        ({"resize": None}, TypeError, "resize must be a string, one of .*, not None"),
        ({"interpolation": "nearest"}, ValueError, "interpolation must be one of"),
        ({"interpolation": 2}, TypeError, "interpolation must be a string"),
        ({"channels": "RGB"}, ValueError, "channels must be one of .*, not 'RGB'"),
        ({"channels": np.array(["rgb"])}, TypeError, "channels must be a string"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocess(**fields)


@pytest.mark.parametrize(
    "three", [[1, 2, 3], np.int8([1, 2, 3]), np.float16([1, 2, 3]), (Fraction(1), 2, 3.0), range(1, 4)]
)
def test_numbers_of_any_kind_become_floats(three: Any) -> None:
    made = Preprocess(mean=three, std=iter(three), crop_fraction=np.float32(0.5))
    assert made == Preprocess(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0), crop_fraction=0.5)
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))
    assert {type(v) for v in (*made.mean, *made.std, made.crop_fraction)} == {float}


def test_the_fields_are_not_those_of_the_caller() -> None:
    mean = np.zeros(3)
    made = Preprocess(mean=mean)  # type: ignore[arg-type]
    mean[:] = 9
    assert made.mean == (0.0, 0.0, 0.0)


def test_a_network_never_sees_more_than_float32_can_hold(small_graph: Graph) -> None:
    """At the limits of what is allowed the outputs are numbers still."""
    for mean, std in ((LIMIT, 1 / LIMIT), (-LIMIT, 1 / LIMIT), (LIMIT, LIMIT), (0, LIMIT)):
        preprocess = Preprocess(mean=(mean,) * 3, std=(std,) * 3, crop_fraction=MIN_CROP_FRACTION)
        out = Model.from_graph(small_graph, preprocess=preprocess).run(pixels(40, 50, 3))
        assert np.isfinite(out).all()


def test_what_is_kept_is_what_is_described() -> None:
    assert (
        Preprocess(mean=[1, 2, 3], std=[4, 5, 6])
        .describe()
        .endswith(  # type: ignore[arg-type]
            "rgb, (pixel - (1, 2, 3)) / (4, 5, 6)"
        )
    )
    assert "shorter side to size/0.875 (bilinear), centre crop" in IMAGENET.describe()
