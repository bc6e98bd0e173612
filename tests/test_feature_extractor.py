"""FeatureExtractor by itself, and in scikit-learn's pipelines."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import FeatureExtractor, Graph, Model, fmn

from .samples import assert_same_bits, pixels


@pytest.fixture
def file(small_graph: Graph, tmp_path: Path) -> str:
    fmn.save(small_graph, tmp_path / "net.fmn")
    return str(tmp_path / "net.fmn")


def colours(count: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of noise, of which those of class 1 are brighter in red."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = rng.integers(0, 120, (count, 32, 32, 3))
    x[..., 0] += 100 * y[:, None, None]
    return x.astype(np.uint8), y


def test_without_scikit_learn(file: str, tmp_path: Path, run_python: Callable[..., Any]) -> None:
    extractor = FeatureExtractor(file)
    x = pixels(3, 32, 32, 3)
    wanted = Model.load(file).features(x)
    assert_same_bits(extractor.fit(x).transform(x), wanted)
    assert_same_bits(extractor.fit_transform(list(x), [0, 1, 2]), wanted)
    Image.fromarray(x[0]).save(tmp_path / "0.png")
    path = str(tmp_path / "0.png")
    column = np.array([[path], [path]], object)
    for paths in ([path, Path(path)], np.array([path, path]), column, (p for p in (path, path))):
        assert_same_bits(extractor.transform(paths), wanted[[0, 0]])
    assert_same_bits(extractor.transform([Image.fromarray(x[1]), path]), wanted[[1, 0]])
    assert_same_bits(FeatureExtractor(Model.load(file)).transform(x), wanted)
    assert list(extractor.get_feature_names_out()) == [f"embedding{i}" for i in range(12)]
    layer = FeatureExtractor(file, output="conv2d", size=(40, 36), threads=2)
    assert layer.transform(x).shape == (3, layer.n_features_out) == (3, 20 * 18 * 12)
    code = "import sys, fastmobilenet; fastmobilenet.FeatureExtractor; print('sklearn' in sys.modules)"
    done = run_python("-c", code)
    assert done.stdout.strip() == "False", done.stderr


def test_parameters_and_pickle(file: str) -> None:
    extractor = FeatureExtractor(file, size=40)
    assert extractor.get_params() == {"model": file, "output": "embedding", "size": 40, "threads": None, "arch": None}
    x = pixels(2, 32, 32, 3)
    wanted = extractor.transform(x)
    data = pickle.dumps(extractor)
    assert len(data) < 1000
    assert_same_bits(pickle.loads(data).transform(x), wanted)
    assert repr(extractor) == f"FeatureExtractor({file!r}, size=40)"
    assert extractor.set_params(size=None) is extractor
    assert_same_bits(extractor.transform(x), Model.load(file).features(x))
    with pytest.raises(ValueError, match="no parameter 'sise'"):
        extractor.set_params(sise=3)
    other = FeatureExtractor(Model.load(file).with_head(np.ones((2, 12))))
    assert_same_bits(pickle.loads(pickle.dumps(other)).transform(x), other.transform(x))


def test_extractors_of_a_file_share_its_model(file: str) -> None:
    first, second = FeatureExtractor(file).fit(None), FeatureExtractor(file).fit(None)
    assert first._load() is second._load()
    assert FeatureExtractor(file, threads=2)._load()._engine is first._load()._engine


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"model": None}, TypeError, "model must be a Model or the path of a model file, not NoneType"),
        ({"model": "none.fmn"}, FileNotFoundError, "none.fmn"),
        ({"output": "embeding"}, ValueError, "no output 'embeding'"),
        ({"threads": 0}, ValueError, "threads must be"),
    ],
)
def test_wrong_parameters_show_at_fit(file: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    extractor = FeatureExtractor(**{"model": file, **options})
    with pytest.raises(error, match=message):
        extractor.fit([])


def test_what_is_no_list_of_pictures(file: str) -> None:
    extractor = FeatureExtractor(file)
    for X, error in (("cat.jpg", TypeError), (3, TypeError), (pixels(32, 32, 3), ValueError)):
        with pytest.raises(error, match="expected"):
            extractor.transform(X)


# --- scikit-learn -----------------------------------------------------------------------------------------


def test_pipeline_and_cross_validation(file: str) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline

    x, y = colours(24)
    for model in (file, Model.load(file)):
        pipeline = make_pipeline(FeatureExtractor(model), LogisticRegression(max_iter=500))
        scores = cross_val_score(pipeline, x, y, cv=2, n_jobs=2)
        assert scores.tolist() == [1.0, 1.0]
        assert clone(pipeline).get_params()["featureextractor__size"] is None
    pipeline.fit(list(x), y)
    assert pipeline.score(list(x), y) == 1.0
    again = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(again.predict(x), pipeline.predict(x))
    assert list(pipeline[:-1].get_feature_names_out())[:2] == ["embedding0", "embedding1"]
    assert "FeatureExtractor" in pipeline._repr_html_()
    search = GridSearchCV(pipeline, {"featureextractor__size": [32, 40]}, cv=2).fit(x, y)
    assert search.best_score_ == 1.0


def test_joblib(file: str, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    extractor, x = FeatureExtractor(file), pixels(4, 32, 32, 3)
    parts = joblib.Parallel(n_jobs=2)(joblib.delayed(extractor.transform)(x[i : i + 2]) for i in (0, 2))
    assert_same_bits(np.concatenate(parts), extractor.transform(x))
    joblib.dump(extractor, tmp_path / "extractor.joblib")
    assert_same_bits(joblib.load(tmp_path / "extractor.joblib").transform(x), extractor.transform(x))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_trained_head_predicts_what_scikit_learn_does(file: str, classes: int, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    x = pixels(30, 32, 32, 3)
    y = np.array(["cat", "dog", "owl"])[np.arange(30) % classes]
    extractor = FeatureExtractor(file)
    trained = LogisticRegression(max_iter=1000).fit(extractor.transform(x), y)
    Model.load(file).with_head(trained.coef_, trained.intercept_, trained.classes_).save(tmp_path / "pets.fmn")
    pets = Model.load(tmp_path / "pets.fmn")
    assert pets.labels == tuple(trained.classes_)
    assert np.allclose(pets.probabilities(x), trained.predict_proba(extractor.transform(x)), atol=1e-4)
