"""Networks of Keras for tests, with random weights. Every function takes the module ``keras``, of version 2 or 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Build = Callable[[Any], Any]


def randomize(network: Any, seed: int = 0) -> Any:
    """Weights and statistics of a sane size in all layers."""
    rng = np.random.default_rng(seed)
    for layer in _leaves(network):
        values = [np.asarray(value) for value in layer.get_weights()]
        kind = type(layer).__name__
        if kind == "BatchNormalization":
            # Up to four vectors: gamma and beta, where the layer has them, and the two statistics.
            spread = [rng.uniform(0.6, 1.4, v.shape) for v in values]
            if layer.center:
                spread[int(layer.scale)] = rng.normal(0, 0.2, values[0].shape)
            spread[-2] = rng.normal(0, 0.2, values[0].shape)
            values = spread
        elif kind == "Normalization":
            values = [rng.uniform(0.5, 1.5, v.shape) if v.ndim else v for v in values]
        else:
            values = [_random(rng, v, depthwise=kind == "DepthwiseConv2D") for v in values]
        layer.set_weights([np.asarray(v, np.float32) for v in values])
        if kind == "Normalization" and values:
            layer.finalize_state()  # Keras computes with what this derives from the weights
    return network


def _random(rng: np.random.Generator, value: np.ndarray, *, depthwise: bool) -> np.ndarray:
    if value.ndim < 2:
        return rng.normal(0, 0.1, value.shape)
    fan_in = np.prod(value.shape[:2]) if depthwise else np.prod(value.shape[:-1])
    return rng.normal(0, (2 / fan_in) ** 0.5, value.shape)


def _leaves(network: Any) -> Iterator[Any]:
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer


def convolutions(keras: Any) -> Any:
    """Every kind of convolution, with strides, dilation, groups, both paddings and ZeroPadding2D."""
    layers = keras.layers
    image = layers.Input((19, 17, 3))
    x = layers.ZeroPadding2D(((1, 2), (0, 1)))(image)
    x = layers.Conv2D(8, (3, 2), strides=2, use_bias=True, name="stem")(x)
    x = layers.ReLU(6.0)(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="wide")(x)
    y = layers.Conv2D(8, 1, activation="relu")(y)
    x = layers.Add()([x, y])
    x = layers.Conv2D(12, 3, dilation_rate=2, padding="same", groups=4, activation="sigmoid")(x)
    x = layers.SeparableConv2D(10, 5, strides=2, padding="same", depth_multiplier=2, activation="relu")(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D((2, 3), dilation_rate=(2, 1), activation="swish")(x)
    x = layers.ZeroPadding2D((1, 2))(x)
    x = layers.Conv2D(6, 3, padding="same")(x)
    return keras.Model(image, x)


def pools(keras: Any) -> Any:
    """Pools, also behind ZeroPadding2D, concatenation, and a Flatten before Dense."""
    layers = keras.layers
    image = layers.Input((17, 15, 3))
    a = layers.MaxPooling2D(3, strides=2, padding="same")(image)
    b = layers.AveragePooling2D(3, strides=2, padding="same")(image)  # as many zeros on all sides: see Keras on PyTorch
    b = layers.Conv2D(5, (1, 1))(b)
    x = layers.Concatenate()([a, b])
    y = layers.ZeroPadding2D(1)(x)
    y = layers.MaxPooling2D(2)(y)
    z = layers.ZeroPadding2D(1)(x)
    z = layers.AveragePooling2D(2)(z)
    x = layers.Concatenate(axis=-1)([y, z])
    v = layers.GlobalAveragePooling2D()(x)
    w = layers.AveragePooling2D((5, 5))(x)
    w = layers.Flatten()(w)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Activation("relu")(x)
    x = layers.Dense(7)(x)
    x = layers.Concatenate()([x, v, w])
    x = layers.Reshape((1, 1, 39))(x)
    x = layers.Conv2D(4, 1, activation="softmax")(x)
    return keras.Model(image, layers.Reshape((-1,))(x))


def activations(keras: Any) -> Any:
    """All activations, one behind the other, with products of maps and gates."""
    layers = keras.layers
    names = ["hard_sigmoid", "sigmoid", "swish", "relu", "linear"]
    if keras.__version__.startswith("3"):
        names += ["hard_swish", "hard_silu", "silu", "relu6"]
    image = layers.Input((8, 9, 4))
    x = image
    for name in names:
        y = layers.Conv2D(4, 1, activation=name)(x)
        x = layers.Add()([x, layers.Activation(name)(y)])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(2, activation="relu")(gate)
    gate = layers.Dense(4, activation="hard_sigmoid")(gate)
    x = layers.Multiply()([gate, x])
    gate = layers.Reshape((1, 1, 4))(layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D()(x)))
    x = layers.Multiply()([x, gate])
    x = layers.Add()([x, layers.Multiply()([x, x, layers.ReLU(max_value=2.0)(x)]), gate])
    x = layers.Conv2D(4, 3)(layers.Subtract()([layers.ReLU()(x), gate]))
    return keras.Model(image, x)


def numbers(keras: Any) -> Any:
    """Arithmetic with numbers, as functions make it: hard swish in three ways, and scaled pixels."""
    layers = keras.layers
    image = layers.Input((8, 8, 3))
    x = (image - 127.5) / 127.5
    x = layers.Conv2D(6, 3)(x)
    x = layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
    x = layers.Conv2D(6, 3)(x)
    x = x * layers.ReLU(6.0)(x + 3.0) / 6.0
    x = layers.Conv2D(6, 1)(2.0 * x)
    x = x * layers.Activation("sigmoid")(x)
    return keras.Model(image, 1.0 - x)


def normalised(keras: Any) -> Any:
    """Rescaling, Normalization with weights and with numbers, BatchNormalization with parts of its parameters."""
    layers = keras.layers
    x = image = layers.Input((8, 8, 3))
    x = layers.Rescaling([1 / 255, 1 / 200, 1 / 100], offset=[0.1, 0.0, -0.1])(x)
    x = layers.Normalization()(x)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    x = layers.BatchNormalization(epsilon=0.01)(x)
    x = layers.Conv2D(5, 3)(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Conv2D(5, 3)(x)
    x = layers.BatchNormalization(center=False, epsilon=1e-5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.BatchNormalization(scale=False, center=False)(x)
    return keras.Model(image, layers.Dense(4)(x))


def sequential(keras: Any) -> Any:
    """A Sequential model with models in it: augmentation, a convolutional base and a head."""
    layers = keras.layers
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomZoom(0.1)])
    base = keras.Sequential([layers.Input((12, 12, 3)), layers.Conv2D(4, 3, name="same"), layers.BatchNormalization()])
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(5, name="same"), layers.Softmax()])
    network = keras.Sequential([layers.Input((12, 12, 3)), augmentation, layers.Rescaling(1 / 127.5, -1), base, head])
    network(np.zeros((1, 12, 12, 3), np.float32))
    return network


def shared(keras: Any) -> Any:
    """A layer and a model that are called twice, and a model that is partly frozen."""
    layers = keras.layers
    x = inner = layers.Input((10, 10, 4))
    x = layers.Conv2D(4, 3, padding="same", name="a")(x)
    x = layers.BatchNormalization(name="a_bn")(x)
    x = layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = layers.BatchNormalization(name="b_bn")(x)
    block = keras.Model(inner, x, name="block")
    image = layers.Input((10, 10, 3))
    stem = layers.Conv2D(4, 1, name="stem")(image)
    relu = layers.ReLU()
    x = relu(block(relu(block(stem))))
    y = layers.Conv2D(4, 1, name="twice")
    x = y(layers.Add()([x, y(stem)]))
    block.get_layer("a").trainable = False
    block.get_layer("b_bn").trainable = False
    return keras.Model(image, x)


def frozen(keras: Any) -> Any:
    """A frozen model whose layers were renamed after they were made, in a Sequential model."""
    layers = keras.layers
    inner = keras.Sequential(
        [layers.Input((10, 10, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Conv2D(4, 3)], name="base"
    )
    inner.trainable = False
    for layer in inner.layers:
        layer._name = "other_" + layer.name
    return keras.Sequential([layers.Input((10, 10, 3)), inner, layers.GlobalAveragePooling2D(), layers.Dense(3)])


NETWORKS: dict[str, Build] = {
    build.__name__: build
    for build in (convolutions, pools, activations, numbers, normalised, sequential, shared, frozen)
}
