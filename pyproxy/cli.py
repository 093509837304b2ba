"""The ``pyproxy`` command: makes a service cooperative first, then hands over to the verbs.

gevent has to replace the blocking parts of the standard library before anything else imports them,
so this module imports nothing of ours at the top. The other verbs do without, and start quicker.
Next on the path: ``commands.py``.
"""

from __future__ import annotations

import os
import sys

_STDERR = 2


def main() -> None:
    """Run the command line of this process and exit with its code."""
    _open_standard_descriptors()
    if "run" in sys.argv[1:]:
        _open_standard_descriptors()
        # The default resolver starts a thread at the first look-up, and then no fork would be safe.
        os.environ.setdefault("GEVENT_RESOLVER", "ares")
        import gevent.monkey

        gevent.monkey.patch_all()
    from pyproxy.commands import cli

    cli(prog_name="pyproxy")


def _open_standard_descriptors() -> None:
    """Put /dev/null where standard input, output or error is closed.

    Otherwise the next file or socket would get that number, and stray output would go into it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(opened)
