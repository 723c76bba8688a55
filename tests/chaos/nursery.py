"""Starts worker processes quickly: imports everything once, then forks one real process per worker.

Run as ``python -m tests.chaos.nursery``: one line of JSON in, ``{"environment": …, "log": …, "file_limit": …,
"fault": …}``, the worker's process id out. When the input ends, the workers end with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork a worker per line of the input."""
    import tamiyo_stream.worker.service  # noqa: F401, PLC0415 - what takes long, before the first fork

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    _answer("ready")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_worker(order)
        _answer(str(pid))


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _become_worker(order: dict[str, Any]) -> None:
    from tamiyo_stream.settings import load_settings  # noqa: PLC0415 - imported already
    from tamiyo_stream.worker.service import run_worker  # noqa: PLC0415
    from tests.chaos.fault_points import arm  # noqa: PLC0415

    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        if order["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
        if order["fault"] is not None:
            arm(order["fault"])
        run_worker(load_settings())
        status = 0
    except Exception:  # noqa: BLE001 - the process ends here: its log says why
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
