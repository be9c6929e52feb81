"""Rows on their way into a table: on disk at once, in files that only their writer adds to.

A writer holds a lock on its file for as long as it lives. A file that nobody holds is taken over by whoever looks.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

ENDING = ".arrows"


class Journal:
    """One writer's file in a folder, an Arrow stream, and the files of those who are gone."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._own: tuple[BinaryIO, pa.RecordBatchStreamWriter] | None = None

    @property
    def open(self) -> bool:
        """Whether there is a file of this writer's."""
        return self._own is not None

    def append(self, rows: pa.Table) -> None:
        """Write rows; they are on disk when this returns.

        Raises:
            OSError: they are not; some of them may be.
        """
        try:
            self._own = self._own or self._open()
            file, stream = self._own
            stream.write_table(rows)
            file.flush()
            os.fdatasync(file.fileno())
        except OSError:
            self.close()  # what comes next must not stand behind half a batch
            raise

    def _open(self) -> tuple[BinaryIO, pa.RecordBatchStreamWriter]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns():020}-{uuid.uuid4().hex}.new"
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        path.rename(path.with_suffix(ENDING))  # where others look, who find it locked
        sync(self._folder)
        return file, pa.ipc.new_stream(file, self._schema)

    def close(self) -> None:
        """Leave what was written to whoever takes it over."""
        own, self._own = self._own, None
        if own:
            own[0].close()

    def take_over(self) -> Iterator[pa.Table]:
        """What files hold that no writer adds to any more; each is deleted when the next is asked for."""
        self.close()
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            try:
                file = path.open("rb")
            except FileNotFoundError:  # somebody else was faster
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if os.fstat(file.fileno()).st_nlink:  # else it has just been deleted
                    yield pa.Table.from_batches(_batches(file), self._schema)
                    path.unlink()


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """All that was written whole; a writer that died may have left a part behind it, of which nobody was told."""
    try:
        yield from pa.ipc.open_stream(file)
    except (OSError, pa.ArrowInvalid):
        return
