"""tools/train_starter.py on pictures made here: the network is this package's, and a run that was cut in two parts
gives the weights of one that was not. Needs PyTorch."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet.image import prepare
from fastmobilenet.model import Model
from fastmobilenet.preprocess import IMAGENET, Preprocess

from .conftest import ROOT

OPTIONS = "--width 0.1 --size 32 --sizes 32 --batch 8 --part 4 --held-out 4 --warmup 0 --lr 0.01".split()


@pytest.fixture(scope="module")
def starter() -> Iterator[ModuleType]:
    torch = pytest.importorskip("torch", reason="the starter model is trained with PyTorch")
    file = ROOT / "tools" / "train_starter.py"
    if not file.exists():
        pytest.skip(f"needs the repository: {file} does not exist")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        yield importlib.import_module("train_starter")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(starter: ModuleType) -> ModuleType:
    return importlib.import_module("starter_pictures")


@pytest.fixture(scope="module")
def network(starter: ModuleType) -> ModuleType:
    return importlib.import_module("starter_network")


@pytest.fixture(scope="module")
def muon(starter: ModuleType) -> ModuleType:
    return importlib.import_module("starter_muon")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures in the files' format."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count in (("cifar10_train.npz", 28), ("cifar10_test.npz", 10)):
        labels = np.arange(count) % 2
        files = []
        for label in labels:
            file = io.BytesIO()
            pixels = rng.integers(0, 100, (32, 32, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        offsets = np.cumsum([0, *(len(f) for f in files)])
        np.savez(folder / name, jpeg=np.concatenate(files), offsets=offsets, labels=labels, names=["dark", "bright"])
    return folder


@pytest.fixture
def train(starter: ModuleType, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs the tool with some options; returns its output folder."""

    def run(out: str, *options: str) -> Path:
        starter.main(["--data", str(data), "--out", str(tmp_path / out), *OPTIONS, *options])
        return tmp_path / out

    return run


def weights(folder: Path) -> Any:
    import torch

    return torch.load(folder / "checkpoint.pt", weights_only=True)["flat"]


def test_the_network_is_this_packages(network: ModuleType) -> None:
    import torch

    torch.manual_seed(0)
    net = network.Network(network.starter_plan(0.5), 10)
    with torch.no_grad():
        net(torch.randn(16, 3, 64, 64))  # statistics that are not those of a new network
    net.eval()
    graph = network.to_graph(net, 64, IMAGENET, [f"class {i}" for i in range(10)])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x).numpy()
    out = Model.from_graph(graph).run(x.numpy())
    np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())


def test_orthogonal(muon: ModuleType) -> None:
    import torch

    torch.manual_seed(0)
    for shape in ((24, 60), (60, 24), (16, 16)):
        found = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape), 6))
        assert found.min() > 0.5
        assert found.max() < 1.4


def test_a_step_turns_filters_by_the_rate(muon: ModuleType) -> None:
    import torch

    torch.manual_seed(0)
    dense = muon.Filters(torch.randn(8, 4, 3, 3), torch.zeros(8, 4, 3, 3))
    depthwise = muon.Filters(torch.randn(8, 1, 3, 3), torch.zeros(8, 1, 3, 3))
    for filters, rows in ((dense, 1), (depthwise, 8)):
        filters.normalise()
        before = filters.weight.clone().view(rows, -1)
        filters.step(torch.randn(filters.weight.shape), 0.05, 0.9)
        after = filters.weight.view(rows, -1)
        torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
        angle = ((after - before).norm(dim=1) / before.norm(dim=1)).max()
        assert 0.02 < angle < 0.06


def test_enlarged_pictures_are_those_of_the_runtime(pictures: ModuleType) -> None:
    import torch

    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    preprocess = Preprocess(crop_fraction=1.0, mean=IMAGENET.mean, std=IMAGENET.std)
    expected = [prepare(p, preprocess, (64, 64)) for p in pixels]
    out = pictures.enlarge(torch.from_numpy(pixels).permute(0, 3, 1, 2), 64)
    np.testing.assert_array_equal(out.permute(0, 2, 3, 1).numpy(), expected)
    assert pictures.MEAN.tolist() == pytest.approx(IMAGENET.mean)
    assert pictures.STD.tolist() == pytest.approx(IMAGENET.std)


def test_resampling_is_a_bilinear_resize_or_a_nearest_one(pictures: ModuleType) -> None:
    import torch

    rows = torch.rand(2, 1, 32)
    for sharp, mode, options in ((0.0, "linear", {"align_corners": False}), (1.0, "nearest", {})):
        m = pictures.resampling(torch.zeros(2), torch.full((2,), 32.0), torch.full((2,), sharp), 32, 64)
        expected = torch.nn.functional.interpolate(rows, 64, mode=mode, **options)
        torch.testing.assert_close((m @ rows.mT).mT, expected, atol=1e-5, rtol=0)
    flipped = pictures.resampling(torch.full((1,), 32.0), torch.full((1,), -32.0), torch.zeros(1), 32, 32)
    torch.testing.assert_close(flipped[0], torch.eye(32).flip(0))


def test_steps_make_the_loss_smaller(starter: ModuleType) -> None:
    import torch

    recipe = starter.Recipe(width=0.1, part=16, held_out=0, smoothing=0.0)
    labels = torch.arange(32) % 2
    pixels = (labels.view(32, 1, 1, 1) * 200 + 20).expand(32, 3, 32, 32).to(torch.uint8)
    trainer = starter.Trainer(recipe, pixels, labels, 2, threads=2)
    losses = [trainer.step(torch.arange(32), 64, 0.5, seed=i, strength=0.0) for i in range(14)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_cut_in_two_gives_the_same_weights(train: Callable[..., Path], starter: ModuleType) -> None:
    whole = train("whole", "--epochs", "3", "--decay", "1", "--threads", "1")
    parts = train("parts", "--epochs", "2", "--decay", "0", "--threads", "2")
    train("parts", "--epochs", "3", "--decay", "1", "--resume")
    assert weights(whole).equal(weights(parts))
    lines = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    report = json.loads((parts / "report.json").read_text())
    assert np.sum(report["confusion"]) == 10
    for name in ("starter.fmn", "starter_fp32.fmn"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
        model = Model.load(parts / name)
        assert model.labels == ("dark", "bright")
        assert model.preprocess.crop_fraction == 1.0
    with pytest.raises(SystemExit, match=r"--width 0\.1 "):
        train("parts", "--epochs", "4", "--width", "0.2", "--resume")
    with pytest.raises(SystemExit, match="exists; give --resume"):
        train("parts", "--epochs", "4")


def test_sizes(starter: ModuleType) -> None:
    recipe = starter.Recipe(size=64, sizes="32:2 48:3 56")
    assert [starter.size_of(recipe, epoch) for epoch in range(7)] == [32, 32, 48, 48, 48, 56, 56]


def test_the_rate_stays_until_the_decay(starter: ModuleType) -> None:
    short, long = (starter.Recipe(epochs=n, decay=10, warmup=2) for n in (20, 50))
    assert [starter.fall(r, 10) for r in (short, long)] == [1, 1]
    assert [starter.fall(short, t) for t in (15, 20)] == [0.5, 0]
    assert [starter.rise(short, t) for t in (1, 2, 3)] == [0.5, 1, 1]


def test_augmentation_at_strength_0_is_a_flip(pictures: ModuleType) -> None:
    import torch

    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flip = torch.arange(16) % 3 == 0
    out = pictures.augment(pixels, 32, torch.Generator().manual_seed(1), 0.0, flip)
    expected = pictures.normalise(torch.where(flip.view(-1, 1, 1, 1), pixels.flip(3), pixels))
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
    strong = pictures.augment(pixels, 32, torch.Generator().manual_seed(1), 1.0, flip)
    assert strong.shape == out.shape
    assert (strong - out).abs().amax((1, 2, 3)).min() > 0.1
