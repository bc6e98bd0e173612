"""Pictures whose classes are known, from a folder, a .csv file or an .npz file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import folders

#: Names of the columns of a .csv file that hold the path of a picture, and its class.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "picture")
LABEL_COLUMNS = ("label", "class", "category", "target")


@dataclass(frozen=True)
class Labelled:
    """Pictures, and the class of each.

    Iterating gives what ``Model.map`` takes. ``labels``: the class of every picture, an index of ``names``; ``names``
    is None where the classes have numbers only. ``source``: where they come from, for messages.
    """

    source: str
    pictures: Sequence[Any]
    labels: list[int]
    names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pictures)

    def name(self, i: int) -> str:
        """What to call picture ``i`` in a message."""
        picture = self.pictures[i]
        return picture if isinstance(picture, str) else f"{self.source}: picture {i}"

    def part(self, count: int) -> Labelled:
        """``count`` pictures from all over, which may be in the order of their classes; all where there are fewer."""
        if count >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, count).astype(int).tolist()
        pictures = [self.pictures[i] for i in chosen]
        return Labelled(self.source, pictures, [self.labels[i] for i in chosen], self.names)


def read(path: str | os.PathLike[str]) -> Labelled:
    """Labelled pictures from

    - a folder, in which every class has a folder of the class's name;
    - a .csv file with a column of paths ("image", "path", "file", "filename") and one of classes ("label", "class"),
      which are names or numbers. Paths are relative to the folder of the file;
    - an .npz file with ``labels`` (n,) and either ``images`` uint8 (n, height, width, 3) or ``jpeg``, the bytes of all
      picture files in a row, and ``offsets`` (n + 1,); perhaps ``names``, those of the classes.

    Pictures in files are read when they are needed. Raises OSError where something cannot be read, and ValueError
    where it is not what it should be.
    """
    path = os.fsdecode(path)
    if os.path.isdir(path):
        return _from_folder(path)
    kind = os.path.splitext(path)[1].lower()
    if kind == ".csv":
        return _from_csv(path)
    if kind == ".npz":
        return _from_npz(path)
    if not os.path.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    raise ValueError(f"{path}: expected a folder with a folder for every class, a .csv file or an .npz file")


def _from_folder(path: str) -> Labelled:
    closed: list[OSError] = []
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    pictures: list[str] = []
    labels: list[int] = []
    for i, name in enumerate(names):
        found = list(folders.pictures(os.path.join(path, name), closed))
        pictures += found
        labels += [i] * len(found)
    if closed:
        raise closed[0]
    if not pictures:
        raise ValueError(f"{path}: has no pictures in folders named after their classes, as in {path}/cat/1.jpg")
    used = sorted(set(labels))  # a folder without pictures is no class
    return Labelled(path, pictures, [used.index(i) for i in labels], tuple(names[i] for i in used))


def _from_csv(path: str) -> Labelled:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is no .csv file: {error}") from None
    columns = [name for name in (rows[0] if rows else {}) if isinstance(name, str)]
    image = _column(columns, IMAGE_COLUMNS)
    label = _column(columns, LABEL_COLUMNS)
    if image is None or label is None:
        what = f"the columns {', '.join(columns)}" if columns else "no rows"
        raise ValueError(f"{path}: has {what}; expected a header with a column image and a column label")
    folder = os.path.dirname(path)
    pictures: list[str] = []
    classes: list[str] = []
    for number, row in enumerate(rows, 2):
        if not row[image] or not (row[label] or "").strip():
            raise ValueError(f"{path}: line {number} has no picture or no class")
        pictures.append(os.path.join(folder, row[image]))
        classes.append(row[label].strip())
    if all(name.isascii() and name.isdigit() for name in classes):
        return Labelled(path, pictures, [int(name) for name in classes], None)
    names = tuple(sorted(set(classes)))
    place = {name: i for i, name in enumerate(names)}
    return Labelled(path, pictures, [place[name] for name in classes], names)


def _column(columns: list[str], known: tuple[str, ...]) -> str | None:
    return next((c for name in known for c in columns if c.strip().lower() == name), None)


def _from_npz(path: str) -> Labelled:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                name: file[name] for name in file.files if name in ("images", "jpeg", "offsets", "labels", "names")
            }
            held = sorted(file.files)
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile raise all kinds for a damaged file
        raise ValueError(f"{path}: is no .npz file that can be read: {error}") from None
    if "labels" not in arrays or not ("images" in arrays or {"jpeg", "offsets"} <= set(arrays)):
        raise ValueError(f"{path}: has the arrays {', '.join(held)}; expected labels, and images or jpeg and offsets")
    labels = arrays["labels"].reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
        raise ValueError(f"{path}: labels must be whole numbers from 0 on, not {labels.dtype}")
    names = None
    if "names" in arrays:
        names = tuple(map(str, arrays["names"].reshape(-1)))
        if labels.size and labels.max() >= len(names):
            raise ValueError(f"{path}: has the class {labels.max()}, and {len(names)} names")
    pictures: Sequence[Any]
    if "images" in arrays:
        pictures = arrays["images"]
        if arrays["images"].ndim != 4 or arrays["images"].shape[3] != 3 or arrays["images"].dtype != np.uint8:
            shape = f"{arrays['images'].dtype} {arrays['images'].shape}"
            raise ValueError(f"{path}: images are {shape}; expected uint8 (n, height, width, 3)")
    else:
        pictures = _Files(arrays["jpeg"], arrays["offsets"], path)
    if len(pictures) != len(labels):
        raise ValueError(f"{path}: has {len(pictures)} pictures and {len(labels)} labels")
    return Labelled(path, pictures, labels.tolist(), names)


class _Files(Sequence[Any]):
    """Picture files in a row, as PIL images that are decoded when they are used."""

    def __init__(self, data: npt.NDArray[Any], offsets: npt.NDArray[Any], path: str) -> None:
        ends = offsets.reshape(-1)
        whole = np.issubdtype(ends.dtype, np.integer) and len(ends) > 0
        if data.dtype != np.uint8 or not whole or (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > data.size:
            raise ValueError(f"{path}: jpeg must be bytes, and offsets must be places in them in rising order")
        self._data, self._ends = data.reshape(-1), ends.astype(np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        from PIL import Image, UnidentifiedImageError

        data = self._data[self._ends[i] : self._ends[i + 1]].tobytes()
        try:
            return Image.open(io.BytesIO(data))
        except (UnidentifiedImageError, OSError, ValueError):
            return data  # Model.map says what is wrong with it
