"""Files that are never half written: write, fsync, rename, fsync of the directory.

A reader, and whoever comes after a crash or a power cut, sees the old content or the new, nothing in between.
"""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from typing import ClassVar

#: What helps, by what went wrong; everything else is a directory that cannot be written.
_FIXES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space on its disk",
    errno.EFBIG: "keep less in it or raise the limit on its size",
}


class FileNotSaved(OSError):
    """A file could not be saved; what it held before is intact. Subclasses say in ``kind`` what it holds."""

    kind: ClassVar[str] = "file"

    def __init__(self, path: Path, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        fix = _FIXES.get(error.errno or 0, "make its directory writable")
        super().__init__(error.errno, f"cannot write {self.kind} {path} ({name}); {fix}", str(path))
        self.path = path


def replace_file(path: Path, content: str | bytes) -> None:
    """Put ``content`` (text as UTF-8) in the place of what ``path`` holds; its directory is made where it is none.

    Raises:
        OSError: the old content is intact, and no other file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer; as readable as any new file, for offline training under another user.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)
