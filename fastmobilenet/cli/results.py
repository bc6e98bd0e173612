"""Results of ``fastmobilenet classify --out``: a row for every picture, in a file that a stopped run can go on with.

- .csv and .jsonl: a row is written with one call, at the end of the file. A row that a crash has cut off is dropped
  when the file is opened again, and its picture classified again.
- .parquet: a folder of files part-00000.parquet, part-00001.parquet, ..., as Spark writes it, which pandas and pyarrow
  read as one table. A part is written whole or not at all; the pictures of one that was not are classified again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from .terminal import CommandError

if TYPE_CHECKING:
    from ..model import Prediction

#: Rows of a part of a .parquet folder.
PART = 1000

FORMATS = (".csv", ".jsonl", ".parquet")
_PART_NAME = re.compile(r"part-(\d+)\.parquet")


class Results(Protocol):
    """An open file of results."""

    def has(self, image: str) -> bool:
        """Whether there is a row of this picture."""

    def add(self, image: str, result: Sequence[Prediction] | str) -> None:
        """The row of a picture: its predictions, or why there are none."""

    def close(self) -> None: ...


def open_results(path: str, top: int) -> Results:
    """Opens what ``path`` names for more rows, of ``top`` classes each. Raises CommandError and OSError."""
    kind = os.path.splitext(path)[1].lower()
    if kind == ".csv":
        return _Csv(path, top)
    if kind == ".jsonl":
        return _JsonLines(path, top)
    if kind == ".parquet":
        return _Parquet(path, top)
    raise CommandError(f"--out {path}: the name must end in one of {', '.join(FORMATS)}")


class _Lines:
    """A text file to which rows are appended; one process at a time."""

    def __init__(self, path: str, top: int) -> None:
        self._path, self._top = path, top
        self._done: set[str] = set()
        self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
        try:
            _lock(self._file, path)
            self._file.seek(0)
            data = self._file.read() or b""
            whole = self._whole(data.decode("utf-8", "surrogateescape"))
            self._start(whole)
            size = len(whole.encode("utf-8", "surrogateescape"))
            if size < len(data):
                self._file.truncate(size)
            if not size:
                self._write(self._heading())
        except BaseException:
            self._file.close()
            raise

    def _whole(self, text: str) -> str:
        """The text without a row that is cut off."""
        return text[: text.rfind("\n") + 1]

    def _start(self, text: str) -> None:
        raise NotImplementedError

    def _heading(self) -> str:
        return ""

    def has(self, image: str) -> bool:
        return image in self._done

    def _write(self, row: str) -> None:
        data = _encode(row)
        written = self._file.write(data)
        while written < len(data):  # a disk that is full fails at the next call
            written += self._file.write(data[written:])

    def close(self) -> None:
        self._file.close()


class _JsonLines(_Lines):
    def _start(self, text: str) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self._done.add(json.loads(line)["image"])
            except (ValueError, KeyError, TypeError):
                raise CommandError(f"{self._path}: line {number} is no result of fastmobilenet classify") from None

    def add(self, image: str, result: Sequence[Prediction] | str) -> None:
        from .classify import as_json

        self._write(as_json(image, result if isinstance(result, str) else list(result)) + "\n")
        self._done.add(image)


class _Csv(_Lines):
    def _header(self) -> list[str]:
        places = (str(i) for i in range(1, self._top + 1))
        return ["image", "error", *(f"{column}_{i}" for i in places for column in ("label", "index", "score"))]

    def _whole(self, text: str) -> str:
        """A line may end within a quoted name: the last row ends where no quote is open."""
        end = text.rfind("\n")
        while end >= 0 and text.count('"', 0, end + 1) % 2:
            end = text.rfind("\n", 0, end)
        return text[: end + 1]

    def _start(self, text: str) -> None:
        rows = csv.reader(io.StringIO(text, newline=""))
        header = next(rows, None)
        if header is not None and header != self._header():
            raise CommandError(
                f"{self._path}: has other columns than --top {self._top} gives; "
                "use the options it was made with, or another file"
            )
        for row in rows:
            if len(row) != len(self._header()):
                raise CommandError(f"{self._path}: the row {','.join(row)[:80]!r} is no result of this command")
            self._done.add(row[0])

    def _heading(self) -> str:
        return _csv_row(self._header())

    def add(self, image: str, result: Sequence[Prediction] | str) -> None:
        cells = [image, result] if isinstance(result, str) else [image, ""]
        if not isinstance(result, str):
            for p in result:
                cells += [p.label, str(p.index), repr(p.score)]
        cells += [""] * (2 + 3 * self._top - len(cells))
        self._write(_csv_row(cells))
        self._done.add(image)


def _encode(text: str) -> bytes:
    """UTF-8; the name of a file that is not in UTF-8 keeps its bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair in a label
        return text.encode("utf-8", "backslashreplace")


def _csv_row(cells: Iterable[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class _Parquet:
    """Columns: image, error (text or null), labels, indices and scores (lists)."""

    def __init__(self, path: str, top: int) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise CommandError(
                "--out FILE.parquet needs pyarrow: pip install fastmobilenet[parquet]; or write .csv or .jsonl"
            ) from None
        self._arrow, self._parquet = pa, pq
        self._schema = pa.schema(
            [
                ("image", pa.string()),
                ("error", pa.string()),
                ("labels", pa.list_(pa.string())),
                ("indices", pa.list_(pa.int32())),
                ("scores", pa.list_(pa.float32())),
            ]
        )
        if os.path.exists(path) and not os.path.isdir(path):
            raise CommandError(f"{path}: is a file, and results go to a folder of parts; use another name")
        os.makedirs(path, exist_ok=True)
        self._path = path
        self._guard = open(os.path.join(path, ".lock"), "ab")  # noqa: SIM115  closed by close()
        self._rows: list[dict[str, Any]] = []
        self._done: set[str] = set()
        try:
            _lock(self._guard, path)
            self._next = 0
            for name in sorted(os.listdir(path)):
                if found := _PART_NAME.fullmatch(name):
                    self._next = max(self._next, int(found[1]) + 1)
                    self._done.update(self._images(os.path.join(path, name)))
        except BaseException:
            self._guard.close()
            raise

    def _images(self, part: str) -> Iterator[str]:
        try:
            yield from self._parquet.read_table(part, columns=["image"])["image"].to_pylist()
        except (self._arrow.ArrowException, KeyError) as error:
            raise CommandError(f"{part}: is no part of results: {error}") from None

    def add(self, image: str, result: Sequence[Prediction] | str) -> None:
        good = [] if isinstance(result, str) else list(result)
        self._rows.append(
            {
                "image": _plain(image),
                "error": _plain(result) if isinstance(result, str) else None,
                "labels": [_plain(p.label) for p in good],
                "indices": [p.index for p in good],
                "scores": [p.score if math.isfinite(p.score) else None for p in good],
            }
        )
        self._done.add(_plain(image))
        if len(self._rows) >= PART:
            self._flush()

    def has(self, image: str) -> bool:
        return _plain(image) in self._done

    def _flush(self) -> None:
        from ..atomic import replacing

        if self._rows:
            table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
            with replacing(os.path.join(self._path, f"part-{self._next:05d}.parquet")) as file:
                self._parquet.write_table(table, file)
            self._next += 1
            self._rows = []

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._guard.close()


def _plain(text: str) -> str:
    """What UTF-8 can hold, for names of files that are not in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _lock(file: BinaryIO, path: str) -> None:
    """Keeps other processes out, where the system can do that. The lock goes with the process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"{path}: another process is writing to it") from None
    except OSError:
        return  # a file system without locks
