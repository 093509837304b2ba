"""Every limit of the Python side, with unit and reason.

The core's limits are in `rust/core/src/limits.rs`; what operators set is in ``config/model.py``.
Next on the path: ``supervisor/run.py``.
"""

from __future__ import annotations

CONFIG_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of one configuration or secret file: a mistaken path must not fill the memory."""

LISTEN_BACKLOG = 4096
"""Connections that wait to be accepted, a listener: a login storm must not meet a full queue."""
SOCKET_PROBE_S = 2.0
"""How long a Unix socket's file is asked whether somebody answers on it."""

BACKOFF_FIRST_S = 0.1
"""First pause before a worker is started again; doubles up to the next."""
BACKOFF_MAX_S = 5.0
"""Longest pause before a worker is started again."""
CRASHES_MAX = 5
"""So many crashes within ``CRASH_WINDOW_S`` stop the service: starting again does not help."""
CRASH_WINDOW_S = 30.0
"""How long a crash counts, and how long a worker must live to count as healthy."""

INTERRUPT_DRAIN_S = 10.0
"""Longest drain after SIGINT: somebody waits at a terminal."""
KILL_AFTER_S = 5.0
"""What a worker gets beyond its own drain before it is killed."""

EVENTS_A_TURN = 1024
"""Events of the engine taken at a time: a flood must not keep the hub from its signals."""
WATCH_S = 1.0
"""How often a worker looks whether its supervisor and its engine live."""
RESOLVE_RETRY_S = 1.0
"""Pause between look-ups while no target has an address."""
TARGET_PROBE_S = 5.0
"""How long a target is given to answer the one connection that is tried at start."""
