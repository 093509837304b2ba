"""Every limit of the Python side, with unit and reason.

The core's limits are in `rust/core/src/limits.rs`; what operators set is in ``config/model.py``.
Next on the path: ``supervisor/run.py``.
"""

from __future__ import annotations

WORKERS_MAX = 64
"""Worker numbers of a service (0–63), as in `rust/ledger`: each has a mailbox and a page entry."""
BUDGET_SLOTS = 100_000
"""Server connections that the shared page has room for: the most that ``max_connections`` takes."""

CONFIG_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of one configuration or secret file: a mistaken path must not fill the memory."""
COMPILED_BYTES_MAX = 64 * 1024 * 1024
"""Bytes that the child which reads the configuration may hand to the supervisor."""
LOAD_S = 30.0
"""How long that child may take: a file on a dead network mount must not hold up later reloads."""

LISTENERS_MAX = 128
"""Listen addresses of a service: an epoch carries them in one message of at most 253 descriptors.
"""
LISTEN_BACKLOG = 4096
"""Connections that wait to be accepted, a listener: a login storm must not meet a full queue."""
SOCKET_PROBE_S = 2.0
"""How long a Unix socket's file is asked whether somebody answers on it."""

LOG_WAIT_MS = 100
"""How long a log line waits for room, in milliseconds; those behind it do not wait."""

BACKOFF_FIRST_S = 0.1
"""Pause before the start after a second crash (the first is made up for at once); then doubles."""
BACKOFF_MAX_S = 5.0
"""Longest pause before a child is started again."""
CRASHES_MAX = 5
"""So many crashes of one worker within ``CRASH_WINDOW_S`` stop the service: trying does not help.
"""
CRASH_WINDOW_S = 30.0
"""How long a crash counts, and how long a child must live to count as healthy."""

INTERRUPT_DRAIN_S = 10.0
"""Longest drain after SIGINT: somebody waits at a terminal."""
KILL_AFTER_S = 5.0
"""What a child gets to end in, once it was told to end at once, before it is killed."""

LOOK_S = 2.0
"""How often the supervisor looks at the heartbeats, which an engine bumps at least once a second.
"""
LOOK_LATE_S = 1.0
"""A look this much behind its time says nothing: the whole machine was busy or stopped."""
LOOKS_MISSED_MAX = 2
"""So many looks in a row without a beat, and the worker is stuck."""
FIRST_BEAT_S = 10.0
"""What a worker gets from its start to its engine's first beat."""

ACKNOWLEDGE_S = 5.0
"""How long the workers have to take new settings over before the caller is told who has not."""
PENDING_LOOK_S = 0.02
"""How often the page is read while somebody waits for it (an acknowledgement, a pause)."""
PAUSE_S = 60.0
"""How long ``pause`` waits for running transactions unless the caller says otherwise."""
PAUSE_S_MAX = 3600.0
"""The longest that a caller of ``pause`` may wait."""
ORDER_S = 2.0
"""How long a worker has to carry out an order, or to write its rows for a read verb."""

MAIL_BYTES_MAX = 192 * 1024
"""Bytes of one mail to an engine, as in `rust/engine`."""
MAIL_DESCRIPTORS_MAX = 253
"""Descriptors of one mail (the kernel's SCM_MAX_FD)."""

REQUEST_BYTES_MAX = 8 * 1024
"""Bytes of one request on the control or statistics socket."""
REQUEST_S = 10.0
"""How long a caller of the control socket has to send its request and to take its answer."""
ACCEPT_AGAIN_S = 1.0
"""Pause of such a socket after the system had no descriptor for a caller."""
CALLERS_MAX = 32
"""Callers of one of these sockets at a time."""
NAME_BYTES_MAX = 63
"""Bytes of a database's name in PostgreSQL (NAMEDATALEN - 1)."""
PAUSED_MAX = 1000
"""Databases that may be paused one by one, so that a script's mistake does not grow for ever."""
ANSWER_S = 5.0
"""How long a verb waits for the supervisor's or the admin process's answer, above its own time."""
ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""Bytes of one answer that a verb takes: a hundred thousand clients are some 30 MB."""

LAST_WORDS_BYTES_MAX = 64 * 1024
"""Bytes of warnings and last words that are kept of a child for the log after its crash."""
LAST_LINES = 12
"""Lines of them that are quoted."""

EVENTS_A_TURN = 1024
"""Events of the engine taken at a time: a flood must not keep the hub from its signals."""
WATCH_S = 1.0
"""How often a worker looks whether its engine lives."""

RESOLVE_S = 30.0
"""How often the targets' names are resolved: what a DNS answer may live for in most set-ups."""
RESOLVE_RETRY_S = 1.0
"""Pause between look-ups while a target has no address."""
TARGET_PROBE_S = 5.0
"""How long a target is given to answer the one connection that is tried at start."""
TOPOLOGY_BYTES_MAX = 128 * 1024
"""Bytes of one message between supervisor and controller: a thousand targets are some 60 KB."""
