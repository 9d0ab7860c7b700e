"""What a model's folder holds, told by names, times, sizes and inodes; files are not read.

Knows no model.
"""

import os
from pathlib import Path

from torchscript_predictor.control import Fingerprint

MAX_DEPTH = 8
MAX_FILES = 10_000
"""More than that are not looked at: a folder of another kind was given by mistake."""


def fingerprint(folder: Path) -> Fingerprint:
    """Of every file under a folder, links followed; hidden files do not count.  A folder that vanishes meanwhile is
    empty.
    """
    found: set[tuple[str, int, int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(Path(place).relative_to(folder).parts) > MAX_DEPTH:  # a link that leads back up
            folders.clear()
        for name in (*files, *folders):
            if name.startswith("."):
                continue
            path = os.path.join(place, name)  # noqa: PTH118 - thousands of them, and only as text
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError:
                continue
            is_file = name in files
            found.add(
                (
                    os.path.relpath(path, folder),
                    status.st_mtime_ns if is_file else 0,
                    status.st_size if is_file else 0,
                    status.st_ino,
                )
            )
        if len(found) > MAX_FILES:
            break
    return frozenset(found)
