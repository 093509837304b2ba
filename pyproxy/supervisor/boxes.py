"""The mailboxes of the engines, one pair a worker number, for the whole life of the service.

The inbox is the worker's, the outbox everybody's. Both ends stay open here, so a worker that starts
again inherits its own, and what a dead one left unread can be thrown away. Not here: what is
written (``../mail.py``). Next on the path: ``epochs.py``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from pyproxy.limits import MAIL_BYTES_MAX, MAIL_DESCRIPTORS_MAX, WORKERS_MAX
from pyproxy.mail import poke
from pyproxy.plainsocket import receive_descriptors, send_with_descriptors, socket_pair


class Boxes:
    """The inbox and the outbox of every worker number."""

    def __init__(self) -> None:
        """Make them all; before the first fork, so that every child knows every outbox."""
        self._inboxes: list[Any] = []
        self._outboxes: list[Any] = []
        for _ in range(WORKERS_MAX):
            inbox, outbox = socket_pair(socket.SOCK_SEQPACKET)
            self._inboxes.append(inbox)
            self._outboxes.append(outbox)

    def inbox(self, worker: int) -> int:
        """Return the descriptor of a worker's inbox."""
        number: int = self._inboxes[worker].fileno()
        return number

    @property
    def outboxes(self) -> list[Any]:
        """All outboxes, by worker number."""
        return self._outboxes

    def send(self, worker: int, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one mail; False if the inbox is full. Never waits."""
        return send_with_descriptors(self._outboxes[worker], data, list(descriptors))

    def poke(self, workers: Iterable[int]) -> None:
        """Wake engines; one whose inbox is full has enough to wake up for."""
        for worker in workers:
            self.send(worker, poke())

    def drain(self, worker: int) -> tuple[int, int]:
        """Throw away what a dead worker did not read; return how many (mails, descriptors).

        The descriptors are closed, so that connections handed over to it end before its permits are
        given to others.
        """
        mails = closed = 0
        while True:
            received = receive_descriptors(
                self._inboxes[worker], MAIL_BYTES_MAX, MAIL_DESCRIPTORS_MAX
            )
            if received is None:
                return mails, closed
            mails += 1
            for descriptor in received[1]:
                os.close(descriptor)
                closed += 1

    def close_inboxes(self, keep: int | None = None) -> None:
        """Close the inboxes in a child, but the one of its own number."""
        for number, inbox in enumerate(self._inboxes):
            if number != keep:
                inbox.close()

    def close_outboxes(self) -> None:
        """Close the outboxes in a child that sends no mail."""
        for outbox in self._outboxes:
            outbox.close()
