"""Parquet as benchmarks publish it: shards, a few rows at a time, texts and pictures checked as they are read.

What the readers of published layouts share. Files are read by column name and by row group, so memory follows one row
group and not the file, and a row group that nobody asks for stays unread. Whatever Arrow cannot read, and a git-lfs
pointer in place of a file, becomes one line that names the file. Which columns there are, and what a row means, belongs
to the readers (`mllmu.py`, `clear.py`).
"""

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .example import IMAGE_MARKER, DataError, EncodedImage

MAX_IMAGE_BYTES = 64 * 2**20
ROWS_AT_ONCE = 8  # a Test_Set row of MLLMU-Bench is about 1.4 MB; more rows at once read no faster
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of a row, with the words that find it again: file, row counted from 0, whose it is."""

    place: str
    cells: Mapping[str, Any]

    def refusal(self, field: str, expected: str, found: object, remedy: str = "Read it as published.") -> DataError:
        """Return the error that says what is wrong with one field of this row."""
        return DataError(f"{self.place}, {field}: expected {expected}, found {reprlib.repr(found)}. {remedy}")


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of one published folder in order; a missing shard is an error."""
    files = sorted(folder.glob("*.parquet"))
    for path in files:
        shards = re.search(r"-of-(\d{5})\.parquet$", path.name)
        if shards and int(shards[1]) != (found := sum(file.name.endswith(shards[0]) for file in files)):
            raise DataError(f"{folder}: expected {int(shards[1])} shards, found {found}. Download the missing ones.")
    return files


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; whatever Arrow cannot read in it becomes one line about the file."""
    with path.open("rb") as start:
        if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(f"{path}: expected parquet, found a git-lfs pointer. Run `git lfs pull` in its checkout.")
    try:
        # Buffered reads without pre-buffering hold a page at a time where the writer made several in a row group.
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        found = " ".join(str(error).split())
        raise DataError(f"{path}: expected a whole parquet file, found: {found}. Download it again.") from error


def wanted_cells(
    file: pq.ParquetFile, columns: Sequence[str], wanted: Sequence[bool]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, cells) of the wanted rows, a few in memory at a time; `wanted` has an entry a row."""
    number = 0
    for group in range(file.num_row_groups):
        end = number + file.metadata.row_group(group).num_rows
        asked = any(wanted[number:end])  # where nothing is asked for, the pictures stay unread
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns) if asked else ():
            for index in range(batch.num_rows):
                if wanted[number + index]:
                    yield number + index, batch.slice(index, 1).to_pylist()[0]
            number += batch.num_rows
        number = end


def read_text(row: Row, field: str, value: Any) -> str | None:
    """Return a text as published, or None where the publisher left it blank."""
    if not isinstance(value, str | None):
        raise row.refusal(field, "text", value)
    if IMAGE_MARKER in (value or ""):
        raise row.refusal(field, f"no literal {IMAGE_MARKER}", value, "Remove it: it marks a picture's place.")
    if any("\ud800" <= character <= "\udfff" for character in value or ""):
        raise row.refusal(field, "Unicode text", value, "Remove the lone surrogate.")
    return value if value and value.strip() else None


def read_picture(row: Row, field: str, cell: Any, max_bytes: int) -> EncodedImage:
    """Return the picture in a cell {bytes, path}, encoded as published."""
    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(data, bytes) or not data:
        raise row.refusal(field, "a record with its bytes", cell, "Export it with images embedded.")
    if len(data) > max_bytes:
        raise row.refusal(field, f"at most {max_bytes} bytes", len(data), "Store it smaller.")
    return EncodedImage(data, f"{row.place}, {field} ({cell.get('path') or 'unnamed'})")
