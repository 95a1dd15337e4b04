"""What forked processes of the tests do: entries for ``ForkServer.start``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mixerbench.launching.job import end_with_parent
from mixerbench.stopping import SIGNALS


def tell() -> None:
    """Print how this process sees itself; ends with the code of its first argument."""
    told = {
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "input": sys.stdin.read(),
        "are_default": [
            signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
            for number in (*SIGNALS, signal.SIGCHLD)
        ],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "group": os.getpgrp(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    print(json.dumps(told))
    print("to the errors", file=sys.stderr)
    sys.exit(int(sys.argv[1]))


def wait() -> None:
    """Write ``begun`` into the file of the first argument, and ``told`` when SIGTERM comes."""
    file = Path(sys.argv[1])

    def end(*_: object) -> None:
        file.write_text("told")
        sys.exit(75)

    signal.signal(signal.SIGTERM, end)
    end_with_parent()
    file.write_text("begun")
    time.sleep(60)


def finish() -> None:
    """Do nothing."""
