"""Networks of the Hugging Face hub: names, what their config says, and files from a server on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Model, ModelError, hub, models
from fastmobilenet.cli import main
from fastmobilenet.importers._plan_names import timm as timm_names

from .hub_server import Hub, etag_of, serve
from .samples import assert_close, names, pixels
from .weight_files import safetensors_bytes, state_of, torch_network

Python = Callable[..., "subprocess.CompletedProcess[str]"]

#: One or more of every family that timm has.
NETWORKS = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv2_110d", "mobilenetv3_large_100", "tf_mobilenetv3_small_075",
    "mobilenetv4_conv_small", "mnasnet_small", "semnasnet_075", "efficientnet_lite0", "tf_efficientnet_lite1",
)  # fmt: skip

CONFIG: dict[str, Any] = {
    "architecture": "mobilenetv3_small_050",
    "num_classes": 7,
    "num_features": 1024,
    "global_pool": "avg",
    "pretrained_cfg": {
        "tag": "lamb_in1k",
        "custom_load": False,
        "input_size": [3, 96, 64],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.25, 0.125],
        "std": [0.5, 0.5, 1.0],
        "num_classes": 7,
        "pool_size": [3, 2],
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
}

#: Loads the names of argv[1], a JSON list, and writes what it gets or the error of each as a line of JSON.
LOAD = """
import json, sys
import numpy as np
from fastmobilenet import Model
for name in json.loads(sys.argv[1]):
    try:
        model = Model.load(name, threads=1)
        x = np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(3, 64, 64)
        out = {"run": model.run(x).tolist(), "labels": model.labels, "repr": repr(model), "name": model.name}
    except Exception as error:
        out = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(out))
"""


def weights(seed: int = 0) -> bytes:
    """A small network under timm's names."""
    graph = models.build("mobilenetv3_small_050", classes=7, seed=seed)
    return safetensors_bytes(state_of(graph, "mobilenetv3_small_050", timm_names))


def config(**changes: Any) -> bytes:
    return json.dumps({**CONFIG, **changes}).encode()


@pytest.fixture
def server() -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serve() as hub:
        yield hub


@pytest.fixture
def load(run_python: Python, server: Hub, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Loads names in another process, whose hub is the server and whose cache is a new one."""

    def call(*wanted: str, **env: str) -> list[dict[str, Any]]:
        done = run_python("-c", LOAD, json.dumps(wanted), env={**settings(server, tmp_path), **env}, timeout=180)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def settings(server: Hub, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": server.address, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("timm/mobilenetv3_large_100.ra_in1k", ("timm/mobilenetv3_large_100.ra_in1k", None)),
        ("timm/mobilenetv3_large_100.ra_in1k@v1", ("timm/mobilenetv3_large_100.ra_in1k", "v1")),
        ("timm/net@refs/pr/3", ("timm/net", "refs/pr/3")),
        ("hf-hub:timm/net.onnx", ("timm/net.onnx", None)),
        ("mobilenet_v2", ("timm/mobilenetv2_100.ra_in1k", None)),
        ("mobilenetv4_conv_small@abc", ("timm/mobilenetv4_conv_small.e2400_r224_in1k", "abc")),
        ("hf-hub:mobilenet_v2", ("timm/mobilenetv2_100.ra_in1k", None)),
        *[(path, None) for path in (
            "net.tflite", "models/net.tflite", "models/net.PTH", "/timm/net", "./timm/net", "a/b/c", "~/net",
            "squeezenet1_1", "timm/", "", "folder/net", "mobilenet_v2/", "timm/net@", "timm\\net", "timm/n\u00e9t",
        )],
    ],
)  # fmt: skip
def test_names(source: str, wanted: tuple[str, str | None] | None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert hub.parse(source) == wanted


def test_a_file_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobilenet_v2").touch()
    assert hub.parse("mobilenet_v2") is None
    assert hub.parse("hf-hub:mobilenet_v2") is not None
    (tmp_path / "timm").mkdir()
    assert hub.parse("timm/net") is None
    with pytest.raises(FileNotFoundError, match="hf-hub:timm/net"):
        Model.load("timm/net")
    with pytest.raises(ModelError, match="names no repository"):
        hub.parse("hf-hub:a/b/c")


def test_short_names_are_those_of_networks() -> None:
    assert set(hub.ALIASES) <= set(models.available())
    for name, repository in hub.ALIASES.items():
        arch, _, tag = repository.removeprefix("timm/").partition(".")
        assert arch in models.available() and tag, name


def test_short_names_are_those_of_timm() -> None:
    torch_network("mobilenetv2_050")  # skips without timm
    import timm

    trained = {f"timm/{name}" for name in timm.list_pretrained()}
    assert set(hub.ALIASES.values()) <= trained


# --- networks ---------------------------------------------------------------------------------------------


def test_networks_equal_those_of_timm(load: Any, server: Hub, tmp_path: Path) -> None:
    """As timm writes its repositories, with the preprocessing of its evaluation."""
    torch, save = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    torch.set_num_threads(1)
    wanted = []
    x = np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
    for arch in NETWORKS:
        module = torch_network(arch)
        from timm.models import save_for_hf  # after torch_network, which helps timm to be imported

        save_for_hf(module, str(tmp_path / arch), safe_serialization=True)
        files = {name: (tmp_path / arch / name).read_bytes() for name in (hub.CONFIG, hub.WEIGHTS)}
        assert save.load(files[hub.WEIGHTS]).keys() == module.state_dict().keys()
        server.add(f"timm/{arch}.random", files)
        with torch.inference_mode():
            wanted.append((module(torch.from_numpy(x))[0].numpy(), transform(module)))
    found = load(*(f"timm/{arch}.random" for arch in NETWORKS))
    for arch, got, (out, (size, crop, interpolation, mean)) in zip(NETWORKS, found, wanted, strict=True):
        assert "error" not in got, got
        assert_close(np.float32(got["run"]), out)
        assert got["name"] == f"timm/{arch}.random"
        assert f"{size}x{size}x3 -> 1000 classes" in got["repr"]
        shown = f"shorter side to size/{size / crop:g} ({interpolation}), centre crop, rgb, (pixel - ({255 * mean:g},"
        assert shown in got["repr"]


def transform(module: Any) -> tuple[int, int, str, float]:
    """Of timm's own transform: the network's size, the shorter side before the crop, the filter, the first mean."""
    from timm.data import create_transform, resolve_model_data_config

    resize, crop, _, normalize = create_transform(**resolve_model_data_config(module)).transforms
    return crop.size[0], resize.size, str(resize.interpolation.value), float(normalize.mean[0])


def test_config_says_how_pictures_are_made() -> None:
    found = hub._config(config(label_names=[f"n{i}" for i in range(7)], label_descriptions={"n0": "tench"}), "x")
    assert (found["architecture"], found["classes"], found["input_size"]) == ("mobilenetv3_small_050", 7, (96, 64))
    assert found["labels"] == ("tench", "n1", "n2", "n3", "n4", "n5", "n6")
    p = found["preprocess"]
    assert (p.resize, p.interpolation, p.crop_fraction) == ("shorter_side", "bicubic", 96 / 106)
    assert (p.mean, p.std) == ((127.5, 63.75, 31.875), (127.5, 127.5, 255.0))
    assert hub._config(config(label_names={str(i): f"n{i}" for i in range(7)}), "x")["labels"][6] == "n6"
    flat = {**CONFIG["pretrained_cfg"], "architecture": "mobilenetv3_small_050"}  # as old ones are
    assert hub._config(json.dumps(flat).encode(), "x")["preprocess"] == p
    squash = {**CONFIG["pretrained_cfg"], "crop_mode": "squash", "crop_pct": 1.0}
    assert hub._config(config(pretrained_cfg=squash), "x")["preprocess"].resize == "stretch"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": None}, "names no architecture"),
        ({"architecture": "resnet18"}, "'resnet18' is none of the networks"),
        ({"model_args": {"act_layer": "gelu"}}, "made with act_layer"),
        ({"model_args": [1]}, "model_args is list"),
        ({"global_pool": "catavgmax"}, "global_pool is 'catavgmax'"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"label_names": ["one"]}, "not a name for each of the 7"),
        *(
            ({"pretrained_cfg": {**CONFIG["pretrained_cfg"], **wrong}}, message)
            for wrong, message in (
                ({"input_size": [1, 96, 96]}, "input_size"),
                ({"input_size": None}, "input_size"),
                ({"crop_pct": 1.5}, "crop_pct is 1.5"),
                ({"crop_mode": "border"}, "crop_mode 'border'"),
                ({"crop_mode": "squash"}, "crop_mode 'squash'"),
                ({"interpolation": "lanczos"}, "interpolation must be one of"),
                ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
                ({"std": [0, 0, 0]}, "std must be"),
                ({"mean": ["a", 1, 2]}, "mean"),
            )
        ),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"^here: .*{message}|^here .*{message}"):
        hub._config(config(**changes), "here")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"3"])
def test_a_config_that_is_no_json(data: bytes) -> None:
    with pytest.raises(ModelError, match="no JSON"):
        hub._config(data, "here")


# --- the cache --------------------------------------------------------------------------------------------


def test_cached_pinned_and_offline(load: Any, server: Hub, tmp_path: Path) -> None:
    first = server.add("me/net", {hub.CONFIG: config(), hub.WEIGHTS: weights(1)})
    (one,) = load("me/net")
    assert sum(r.startswith("GET /storage") for r in server.requests) == 1
    server.add("me/net", {hub.CONFIG: config(label_names=names(7)), hub.WEIGHTS: weights(2)})
    pinned, newest, tagged = load(f"me/net@{first}", "me/net", "me/net@main")
    assert pinned == one != newest == tagged
    assert newest["labels"] == list(names(7)) and one["labels"] is None
    assert np.abs(np.subtract(one["run"], newest["run"])).max() > 1e-3
    count = len(server.requests)
    assert load("me/net", f"me/net@{first}", HF_HUB_OFFLINE="1") == [newest, one]
    assert len(server.requests) == count
    server.down = True  # what is in the cache serves
    assert load("me/net") == [newest]


def test_errors_say_what_to_do(load: Any, server: Hub, tmp_path: Path) -> None:
    server.add("me/net", {hub.CONFIG: config(), hub.WEIGHTS: weights()})
    server.add("me/bare", {hub.CONFIG: config()})
    server.add("me/other", {"pytorch_model.bin": b"x"})
    server.add("me/closed", {hub.CONFIG: config()})
    server.add("me/torn", {hub.CONFIG: config(), hub.WEIGHTS: weights()[:20_000]})
    server.add("me/classes", {hub.CONFIG: config(num_classes=9), hub.WEIGHTS: weights()})
    server.gated.add("me/closed")
    messages = {
        "me/none": "hub has no such repository",
        "me/net@v7": "no revision 'v7'",
        "me/bare": "has no model.safetensors",
        "me/other": "has no config.json",
        "me/closed": "owner has to let you in",
        "me/torn": "not a valid safetensors file",
        "me/classes": "does not fit arch 'mobilenetv3_small_050'",
        "me/a--b": "no name of a repository",
    }
    for found, (name, message) in zip(load(*messages), messages.items(), strict=True):
        assert found["error"] == "ModelError", found
        assert found["message"].startswith(name), found
        assert message in found["message"], found
    (found,) = load("me/net", HF_HUB_OFFLINE="1")
    assert found["error"] == "ModelError" and "HF_HUB_OFFLINE forbids" in found["message"]
    (found,) = load("me/net", HF_ENDPOINT="http://127.0.0.1:9")
    assert found["error"] == "ModelError" and "http://127.0.0.1:9 cannot be reached" in found["message"], found


def test_a_damaged_cache_is_told(load: Any, server: Hub, tmp_path: Path) -> None:
    data = weights()
    server.add("me/net", {hub.CONFIG: config(), hub.WEIGHTS: data})
    (good,) = load("me/net")
    blobs = {path.name: path for path in (tmp_path / "hf").rglob("blobs/*")}
    for content in (data, config()):
        blob = blobs[etag_of(content)]
        changed = bytearray(content)
        changed[-1] ^= 1
        blob.write_bytes(changed)
        (found,) = load("me/net", HF_HUB_OFFLINE="1")
        assert found["error"] == "ModelError", found
        at = re.search("Delete (.*) and load it again", found["message"])
        assert at is not None, found
        assert os.path.samefile(at[1], blob)
        blob.unlink()
        assert load("me/net") == [good]


def test_without_the_extra(run_python: Python, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import fastmobilenet\n"
        "try: fastmobilenet.Model.load('timm/net')\n"
        "except fastmobilenet.ModelError as error: print(error)\n"
    )
    done = run_python("-c", code)
    assert "pip install 'fastmobilenet[hub]'" in done.stdout, done


# --- what uses it -----------------------------------------------------------------------------------------


def test_commands_features_and_pickles(run_python: Python, server: Hub, tmp_path: Path) -> None:
    server.add("me/net", {hub.CONFIG: config(label_names=names(7)), hub.WEIGHTS: weights()})
    server.add("timm/mobilenetv2_100.ra_in1k", {hub.CONFIG: config(), hub.WEIGHTS: weights()})
    Image.fromarray(pixels(80, 90, 3)).save(tmp_path / "a.png")
    env = settings(server, tmp_path)

    def command(*args: str) -> str:
        done = run_python("-m", "fastmobilenet", *args, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = command("classify", str(tmp_path / "a.png"), "--model", "me/net", "--json", "--top", "7")
    labels = {p["label"] for p in json.loads(shown)["predictions"]}
    assert labels == set(names(7))
    assert "class " in command("classify", str(tmp_path / "a.png"), "--model", "mobilenet_v2")
    assert "96x64" in command("info", "me/net")
    assert "3.5" in command("info", "mobilenet_v2")  # the architecture itself, in million parameters
    for model in ("me/net", "mobilenet_v2"):
        report = json.loads(command("verify", model, "--against", "reference", "--json"))
        assert report["ok"] and report["file"] == model
    shown = command("verify", "me/net", str(tmp_path / "a.png"))
    assert "timm's mobilenetv3_small_050" in shown or "install torch to compare with it" in shown
    assert "written" in command("convert", "me/net", str(tmp_path / "net.fmn"))
    code = (
        "import pickle, sys, numpy as np\n"
        "from fastmobilenet import FeatureExtractor, Model\n"
        "x = np.load(sys.argv[2])\n"
        "model = Model.load('me/net')\n"
        "data = pickle.dumps(model)\n"
        "assert len(data) < 2000, len(data)\n"
        "assert (pickle.loads(data).run(x) == model.run(x)).all()\n"
        "one, two = FeatureExtractor('me/net'), FeatureExtractor('me/net')\n"
        "assert (one.transform(x[None]) == model.features(x[None])).all()\n"
        "two.fit(None); assert one._model is two._model\n"
        "assert (Model.load(sys.argv[1]).run(x) == model.run(x)).all()\n"
        "open(sys.argv[3], 'wb').write(data)\n"
    )
    np.save(tmp_path / "x.npy", pixels(70, 60, 3))
    done = run_python("-c", code, *(str(tmp_path / name) for name in ("net.fmn", "x.npy", "model.pickle")), env=env)
    assert done.returncode == 0, done.stderr
    # The pickle names the commit: it stays the same network, also where the cache is another one.
    server.add("me/net", {hub.CONFIG: config(), hub.WEIGHTS: weights(5)})
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).labels)"
    elsewhere = {**env, "HF_HOME": str(tmp_path / "elsewhere")}
    done = run_python("-c", code, str(tmp_path / "model.pickle"), env=elsewhere)
    assert names(7)[0] in done.stdout, done.stderr


def test_architectures_without_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.png", "--model", "squeezenet1_1"]) == 1
    assert "squeezenet1_1 is an architecture, and classify needs trained weights" in capsys.readouterr().err
