"""FeatureExtractor: pictures in, embeddings out, as a transformer of scikit-learn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from . import hub, outputs, values
from .graph import infer_shapes
from .model import Model

if TYPE_CHECKING:
    from sklearn.utils import Tags

#: Models of files that are in use, so that the clones of an extractor share one: what decides about it -> Model.
_loaded: WeakValueDictionary[tuple[Any, ...], Model] = WeakValueDictionary()


class FeatureExtractor:
    """Pictures in, embeddings out: a transformer for the pipelines of scikit-learn, which need not be installed.

    >>> from sklearn.pipeline import make_pipeline                          # doctest: +SKIP
    >>> from sklearn.linear_model import LogisticRegression                 # doctest: +SKIP
    >>> extractor = FeatureExtractor("mobilenet_v2.fmn")                    # doctest: +SKIP
    >>> pipeline = make_pipeline(extractor, LogisticRegression())           # doctest: +SKIP
    >>> cross_val_score(pipeline, paths, classes, n_jobs=2)                 # doctest: +SKIP

    model: a Model, or the path of a model file or a name of the hub, which is loaded at the first use. A pickle of an
        extractor holds the path or the Model as it was given, so that one with a path takes less than a kilobyte.
    output: "embedding", or another output by name, see ``Model.run``; what is larger than a pixel is flattened.
    size: run pictures at this size, instead of the model's own.
    threads: how many threads a run takes; None for the model's own number. Workers of joblib have fewer, see there.
    arch: the architecture, for a file that holds weights only.

    There is nothing to fit: ``fit`` loads the model and checks the parameters. ``transform`` takes a list or an array
    of pictures: paths, PIL images, uint8 arrays (h, w, 3) of any sizes, an array (n, h, w, 3), or preprocessed float32
    arrays (n, ...) as ``Model.run`` takes them; also a column of paths, (n, 1), and a Series or Index of pandas.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        output: str = "embedding",
        size: int | tuple[int, int] | None = None,
        threads: int | None = None,
        arch: str | None = None,
    ) -> None:
        # Kept as given and checked when used: scikit-learn's clone compares them.
        self.model = model
        self.output = output
        self.size = size
        self.threads = threads
        self.arch = arch

    # --- scikit-learn's protocol -------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the constructor by name."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> FeatureExtractor:
        """Change parameters. Raises ValueError for a name that is none."""
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise ValueError(f"FeatureExtractor has no parameter {name!r}; it has {', '.join(_PARAMETERS)}")
            setattr(self, name, value)
        self.__dict__.pop("_model", None)
        return self

    def fit(self, X: Any, y: Any = None) -> FeatureExtractor:
        """Load the model, if that is not done yet. ``X`` and ``y`` are not looked at."""
        self._load()
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The embeddings of pictures: float32 (n, features). Raises what ``Model.load`` and ``Model.run`` raise."""
        model = self._load()
        options = {} if self.size is None else {"size": self.size}
        pictures = _pictures(X)
        if self.output == "embedding":
            return model.features(pictures, **options)
        found = model.run(pictures, outputs=[self.output], **options)[self.output]
        return found.reshape(len(found), -1)

    def fit_transform(self, X: Any, y: Any = None, **ignored: Any) -> npt.NDArray[np.float32]:
        """:meth:`fit` and :meth:`transform`."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """The names of the columns: "embedding0" and so on. ``input_features`` is not looked at."""
        return np.array([f"{self.output}{i}" for i in range(self.n_features_out)], dtype=object)

    @property
    def n_features_out(self) -> int:
        """How many features a picture has."""
        model = self._load()
        h, w = model.input_size if self.size is None else values.check_size(self.size)
        selection = outputs.Selection(model._engine.skeleton)
        node = selection.node(self.output)
        _, oh, ow, c = infer_shapes(selection.graph, 1, h, w)[node]
        return oh * ow * c

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
            requires_fit=False,
            no_validation=True,
        )

    # --- itself ------------------------------------------------------------------------------------------

    def _load(self) -> Model:
        """The Model, loaded at the first call. Extractors of one file share one."""
        known = self.__dict__.get("_model")
        if known is not None:
            return known  # type: ignore[no-any-return]
        model = self.model
        if isinstance(model, Model):
            if self.arch is not None:
                raise ValueError("arch is for the path of a file that holds weights only, and model is a Model")
        elif isinstance(model, str) and (name := hub.parse(model)) is not None:
            found = _loaded.get((str(name), self.arch))
            if found is None:
                found = _loaded.setdefault((str(name), self.arch), Model.load(model, arch=self.arch))
            model = found
        elif isinstance(model, (str, os.PathLike)):
            path = os.path.abspath(os.fsdecode(model))
            stat = os.stat(path)
            key = path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, self.arch
            # No lock: a child that was forked while another thread held it would wait for ever.
            found = _loaded.get(key)
            model = _loaded.setdefault(key, Model.load(path, arch=self.arch)) if found is None else found
        else:
            raise TypeError(f"model must be a Model or the path of a model file, not {type(model).__name__}")
        if self.threads is not None:
            from . import arguments

            threads = arguments.check_threads(self.threads)
            assert threads is not None
            model = model._with_threads(threads)
        model._named.check(outputs.check_names([self.output]))
        self._model = model
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PARAMETERS}

    def __repr__(self) -> str:
        model = self.model.name if isinstance(self.model, Model) else repr(self.model)
        defaults = {"output": "embedding", "size": None, "threads": None, "arch": None}
        rest = [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        return f"FeatureExtractor({', '.join([model, *rest])})"


_PARAMETERS = ("model", "output", "size", "threads", "arch")


def _pictures(X: Any) -> Any:
    """What Model.run takes several pictures as."""
    if not isinstance(X, (np.ndarray, list, tuple)):
        if isinstance(X, (str, os.PathLike)) or not hasattr(X, "__iter__"):
            raise TypeError(f"expected several pictures in a list or an array, got {type(X).__name__}")
        X = list(X)  # a Series of pandas, whose indices need not begin at 0
    if isinstance(X, np.ndarray) and X.dtype.kind in "OU":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"expected a list or a column of pictures, got an array of shape {X.shape}")
        X = [str(item) for item in X] if X.dtype.kind == "U" else list(X)
    if isinstance(X, np.ndarray) and X.ndim != 4:
        raise ValueError(f"expected pictures (n, height, width, 3), got an array of shape {X.shape}")
    return X
