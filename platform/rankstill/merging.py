"""Merging of a Delta table's small files, here or in a process that gives way to others.

`python -m rankstill.merging` merges those of the table whose location comes on its standard input, where other
processes see no credentials that it may hold.
"""

import os
import subprocess
import sys

from deltalake import DeltaTable

MERGED_BYTES = 8 * 2**20
"""A file of this size isn't merged with others any more."""
RETENTION = {
    "delta.logRetentionDuration": "interval 10 seconds",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
"""Of a table: a commit lists all those before it whose files are there, so that they go soon; files that no row is in
any more are kept for those who read meanwhile."""
NICENESS = 10


def merge(location: str) -> None:
    """Merge small files, and delete what nobody needs any more; rows stay as they are, and others may write meanwhile.

    Raises what deltalake does.
    """
    table = DeltaTable(location)
    table.optimize.compact(target_size=MERGED_BYTES)
    table.vacuum(dry_run=False)
    table.create_checkpoint()
    table.cleanup_metadata()


def merge_aside(location: str) -> None:
    """The same in a process of low priority.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "rankstill.merging"]
    subprocess.run(command, input=location, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    os.nice(NICENESS)
    merge(sys.stdin.read())
