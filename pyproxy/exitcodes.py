"""Exit codes of the command and its processes, numbered as in sysexits(3).

Not here: when each is used. Next on the path: ``cli.py``.
"""

from __future__ import annotations

OK = 0
"""It worked, or it ended because it was told to."""
FINDINGS = 1
"""A check found something."""
USAGE = 2
"""The command line is wrong."""
UNAVAILABLE = 69
"""Something needed is not there or taken: a port in use, a worker that keeps crashing."""
WORKER_FAILED = 70
"""A worker gave up because its engine ended; the supervisor starts another one."""
CONFIG = 78
"""The configuration cannot work; starting again would not help."""
