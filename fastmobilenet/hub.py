"""Trained networks from the Hugging Face hub: ``Model.load("timm/mobilenetv3_large_100.ra_in1k")``.

A repository of timm holds the weights, model.safetensors, and config.json, which says the architecture, what is done to
pictures, and the names of the classes. huggingface_hub fetches both and keeps them in its cache, where they are found
again without a network. The hub names each version of a file by a hash of its content: what lies in the cache is
compared with it at every load.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import ModelError
from .graph import Graph
from .sources import PREFIX

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_SHORT = re.compile(r"([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_INSTALL = "pip install 'fastmobilenet[hub]'"

_TAGS = {
    "ra_in1k": "mobilenetv2_100 mobilenetv2_110d mobilenetv2_120d mobilenetv2_140 mobilenetv3_large_100 "
    "efficientnet_lite0",
    "lamb_in1k": "mobilenetv2_050 mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100 mnasnet_small",
    "ra4_e3600_r224_in1k": "mobilenetv1_100 mobilenetv1_100h mobilenetv1_125",
    "e2400_r224_in1k": "mobilenetv4_conv_small",
    "e3000_r224_in1k": "mobilenetv4_conv_small_050",
    "e500_r256_in1k": "mobilenetv4_conv_medium",
    "e600_r384_in1k": "mobilenetv4_conv_large",
    "rmsp_in1k": "mnasnet_100 semnasnet_075 semnasnet_100",
    "in1k": "tf_mobilenetv3_large_075 tf_mobilenetv3_large_100 tf_mobilenetv3_large_minimal_100 "
    "tf_mobilenetv3_small_075 tf_mobilenetv3_small_100 tf_mobilenetv3_small_minimal_100 tf_efficientnet_lite0 "
    "tf_efficientnet_lite1 tf_efficientnet_lite2 tf_efficientnet_lite3 tf_efficientnet_lite4",
    "tv_in1k": "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
}
_LIKE = {
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mnasnet1_0": "mnasnet_100",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
    "efficientnet_lite3": "tf_efficientnet_lite3",
    "efficientnet_lite4": "tf_efficientnet_lite4",
}
_OWN = {name: f"timm/{name}.{tag}" for tag, names in _TAGS.items() for name in names.split()}

#: Short name -> repository: those of timm with its first weights, and the usual ones of the papers and of torchvision.
ALIASES = {**_OWN, **{name: _OWN[same] for name, same in _LIKE.items()}}

#: Arguments of timm's constructors that change nothing in the network once it runs.
_HARMLESS = frozenset(
    {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool", "img_size", "input_size"}
)


class Name(NamedTuple):
    """A repository and, if one was given, a branch, tag or commit."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Found:
    """A network of the hub: the graph; the weights' file in the cache; the name with the commit that it is; and the
    architecture."""

    graph: Graph
    path: str
    name: str
    arch: str


def parse(source: str) -> Name | None:
    """The repository that ``source`` names, or None where it is (meant as) a path.

    "owner/name" and the short names of ALIASES, both perhaps with "@revision", name a repository unless there is a file
    or a folder of that name, or for the former a folder "owner", or it ends as a model file does. What begins with
    "hf-hub:" names a repository whatever there is.
    """
    forced = source.startswith(PREFIX)
    text = source.removeprefix(PREFIX)
    if match := _SHORT.fullmatch(text):
        if match[1] in ALIASES and (forced or not os.path.exists(source)):
            return Name(ALIASES[match[1]], match[2])
        if not forced:
            return None
    match = _NAME.fullmatch(text)
    if match is None:
        if forced:
            raise ModelError(
                f"{source!r} names no repository: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION"
            )
        return None
    if not forced and (_is_file_name(match[1]) or os.path.exists(source) or os.path.isdir(match[1].split("/")[0])):
        return None
    return Name(match[1], match[2])


def looks_like_name(source: str) -> bool:
    """Whether it would name a repository if nothing here had such a name."""
    match = _NAME.fullmatch(source)
    return match is not None and not _is_file_name(match[1])


def _is_file_name(text: str) -> bool:
    from .importers import BY_EXTENSION

    return text.lower().endswith((*BY_EXTENSION, ".fmn", ".bin", ".txt"))


def load(name: Name) -> Found:
    """The network of a repository. Raises ModelError that says what to do: huggingface_hub is missing, there is no
    network and nothing in the cache, no such repository, revision or file, a damaged file, or a network that is none of
    ``models.available()``."""
    from .importers import safetensors, state_dict

    config_path = _fetch(name, CONFIG)
    commit = os.path.basename(os.path.dirname(config_path))  # .../snapshots/COMMIT/config.json
    pinned = Name(name.repository, commit)
    config = _config(_read(config_path, name), f"{name}: {CONFIG}")
    path = _fetch(pinned, WEIGHTS)
    state = safetensors.read(_read(path, name), f"{name}: {WEIGHTS}")
    graph = state_dict.to_graph(state, arch=config["architecture"], name=str(name), classes=config["classes"])
    graph = graph.replace(
        preprocess=config["preprocess"], input_size=config["input_size"], labels=config["labels"], name=name.repository
    )
    return Found(graph, path, f"{PREFIX}{pinned}", config["architecture"])


# --- config.json ------------------------------------------------------------------------------------------


def _config(data: bytes, where: str) -> dict[str, Any]:
    """What timm's config.json says: architecture, classes, preprocess, input_size, labels."""
    import json

    from . import models

    try:
        config = json.loads(data)
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ModelError(f"{where} is no JSON: {error}") from None
    arch = config.get("architecture")
    if not isinstance(arch, str):
        raise ModelError(f"{where} names no architecture, as those of timm do; other repositories cannot be loaded")
    if arch not in models.available():
        raise ModelError(f"{where}: {arch!r} is none of the networks that run here: {', '.join(models.available())}")
    changed = sorted(set(_mapping(config, "model_args", where)) - _HARMLESS)
    if changed:
        raise ModelError(f"{where}: the network was made with {', '.join(changed)}, which is not supported")
    if config.get("global_pool") not in (None, "avg", "fast"):
        raise ModelError(f"{where}: global_pool is {config['global_pool']!r}, and only 'avg' is supported")
    pretrained = _mapping(config, "pretrained_cfg", where) or config  # older ones have all in one object
    classes = config.get("num_classes", pretrained.get("num_classes"))
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ModelError(f"{where}: num_classes is {classes!r}; a network without its classifier cannot be loaded")
    try:
        size, preprocess = _preprocess(pretrained)
    except (TypeError, ValueError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ModelError(f"{where}: {reason}") from None
    return {
        "architecture": arch,
        "classes": classes,
        "preprocess": preprocess,
        "input_size": size,
        "labels": _labels(config, pretrained, classes, where),
    }


def _mapping(config: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {key} is {type(value).__name__}, expected an object")
    return value


def _preprocess(config: dict[str, Any]) -> tuple[tuple[int, int], Any]:
    """timm's evaluation transform: the shorter side to ``floor(size / crop_pct)``, the centre, the normalisation."""
    from .preprocess import Preprocess

    shape = config["input_size"]
    whole = isinstance(shape, (list, tuple)) and len(shape) == 3 and all(type(v) is int and v > 0 for v in shape)
    if not whole or shape[0] != 3:
        raise ValueError(f"input_size is {shape!r}, expected [3, height, width]")
    size = shape[1], shape[2]
    share, mode = config.get("crop_pct"), config.get("crop_mode") or "center"
    share = 0.875 if share is None else share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"crop_pct is {share!r}, expected a number of at most 1")
    if mode not in ("center", "squash") or (mode == "squash" and share != 1):
        raise ValueError(f"crop_mode {mode!r} with crop_pct {share} is not supported")
    per_channel = {key: [255 * v for v in config[key]] for key in ("mean", "std")}
    return size, Preprocess(
        resize="stretch" if mode == "squash" else "shorter_side",
        crop_fraction=size[0] / int(size[0] / share),
        interpolation=config.get("interpolation") or "bicubic",
        mean=tuple(per_channel["mean"]),
        std=tuple(per_channel["std"]),
    )


def _labels(config: dict[str, Any], pretrained: dict[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """The descriptions of the classes, or their names, where there is one for each."""
    names = config.get("label_names") or config.get("labels") or pretrained.get("label_names")
    if not names:
        return None
    if isinstance(names, dict):  # class -> name; JSON has strings as keys
        names = [names.get(str(i)) for i in range(classes)]
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{where}: label_names are not a name for each of the {classes} classes")
    said = config.get("label_descriptions") or pretrained.get("label_descriptions")
    said = said if isinstance(said, dict) else {}
    return tuple(str(said.get(name, name)) for name in names)


# --- files ------------------------------------------------------------------------------------------------


def _fetch(name: Name, file: str) -> str:
    """The path of a file in the cache, where it is fetched to if it is not there or the branch has a newer one."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ModelError(f"{name}: huggingface_hub is needed for networks of the hub: {_INSTALL}") from None
    revision = name.revision
    try:
        known = huggingface_hub.try_to_load_from_cache(name.repository, file, revision=revision)
        if not isinstance(known, str):
            # Asked for here, because the call below asks again and again for a minute before it gives up.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name.repository, file, revision=revision))
        found: str = huggingface_hub.hf_hub_download(name.repository, file, revision=revision)
        return found
    except errors.GatedRepoError:
        why = f"its owner has to let you in: see {_address(name)}, and log in (hf auth login, or HF_TOKEN)"
    except errors.RepositoryNotFoundError:
        why = f"the hub has no such repository ({_address(name)}), or it is private and needs HF_TOKEN"
    except errors.RevisionNotFoundError:
        why = f"the repository has no revision {name.revision!r}"
    except errors.LocalEntryNotFoundError as error:  # before EntryNotFoundError, which it is too
        why = _unreachable(name, file, error)
    except errors.EntryNotFoundError:
        why = f"the repository has no {file}, as those of timm do; other repositories cannot be loaded"
    except errors.HFValidationError as error:
        why = f"this is no name of a repository: {error}"
    except errors.HfHubHTTPError as error:
        why = f"{file} cannot be fetched: {_line(error)}"
    except Exception as error:  # of the network and its libraries: no such host, refused, cut off
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # the operating system's own, a full disk
        why = _unreachable(name, file, error)
    raise ModelError(f"{name}: {why}")


def _unreachable(name: Name, file: str, error: BaseException) -> str:
    from huggingface_hub import constants

    place = f"{file} is not in the cache ({constants.HF_HUB_CACHE})"
    if os.environ.get("HF_HUB_OFFLINE") and constants.HF_HUB_OFFLINE:
        return f"{place}, and HF_HUB_OFFLINE forbids to fetch it: unset it, or fetch it where there is a network"
    return (
        f"{place}, and {constants.ENDPOINT} cannot be reached ({_line(error.__cause__ or error)}). Try again with a "
        "network; or fetch it on another machine with fastmobilenet convert, and load that file"
    )


def _address(name: Name) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name.repository}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read(path: str, name: Name) -> bytes:
    """The content of a file of the cache. Raises ModelError where it is not what the hub has under this version."""
    with open(path, "rb") as file:
        data = file.read()
    version = _version(path)
    if version is not None and not _is(version, data):
        blob = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        raise ModelError(
            f"{name}: {os.path.basename(path)} in the cache is damaged: its {len(data)} bytes have not the hash that "
            f"the hub gives, {version}. Delete {blob} and load it again"
        )
    return data


def _version(path: str) -> str | None:
    """The hash by which the hub names this version of a file; None where the cache does not tell: the files of a
    snapshot are links to blobs/HASH, except on file systems without links."""
    if not os.path.islink(path):
        return None
    name = os.path.basename(os.readlink(path))
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _is(version: str, data: bytes) -> bool:
    """Whether a hash is that of the data: SHA-256 for what git has in its large file storage, else git's own."""
    import hashlib

    if len(version) == 64:
        return hashlib.sha256(data).hexdigest() == version
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == version
