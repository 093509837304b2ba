"""A stand-in for the extension: a page and an engine in Python, to test the processes around it.

The page is shared memory as the real one is; the engine takes and answers the same mail, accepts
clients and echoes what they send. It knows no SQL. Not a test itself. Next on the path:
`program.py`.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent.event import Event

from pyproxy.limits import MAIL_BYTES_MAX, WORKERS_MAX
from pyproxy.mail import Kind
from pyproxy.plainsocket import close_now, new_socket, receive_descriptors

FIELDS = (
    "alive",
    "incarnation",
    "heartbeat",
    "clients",
    "idle",
    "waiting",
    "servers",
    "paused_busy",
    "epoch",
)
BEAT_S = 0.2


class Page:
    """The shared page."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.memory = mmap.mmap(-1, 8 * len(FIELDS) * (WORKERS_MAX + 1))
        self.limit: tuple[int | None, int | None] = (None, None)

    @staticmethod
    def create(slots: int, /) -> Page:
        return Page(slots)

    def set_limit(self, connections: int | None, percent: int | None, /) -> None:
        self.limit = (connections, percent)

    def bury(self, worker: int, /) -> int:
        for name in ("alive", "clients", "idle", "waiting", "servers", "paused_busy"):
            self.put(worker, name, 0)
        return 0

    def io(self, worker: int, /) -> str | None:
        return "epoll" if self.worker(worker)["incarnation"] else None

    def worker(self, worker: int, /) -> dict[str, int]:
        return {
            name: struct.unpack_from("Q", self.memory, self._at(worker, name))[0] for name in FIELDS
        }

    def budget(self) -> dict[str, int]:
        return {"allowed": self.limit[0] or 0, "free": 0, "held": 0, "capacity": self.slots}

    def put(self, worker: int, name: str, value: int) -> None:
        struct.pack_into("Q", self.memory, self._at(worker, name), value)

    @staticmethod
    def _at(worker: int, name: str) -> int:
        return 8 * (worker * len(FIELDS) + FIELDS.index(name))


class Engine:
    """An engine whose thread is a greenlet."""

    def __init__(
        self,
        page: Page,
        worker: int,
        incarnation: int,
        _io: str,
        epoch: int,
        settings_fd: int,
        listeners: list[tuple[int, int, bool]],
        inbox: int,
        outboxes: list[int],
        /,
    ) -> None:
        self.page, self.worker, self.incarnation = page, worker, incarnation
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.inbox = new_socket(fileno=os.dup(inbox))
        assert len(outboxes) == WORKERS_MAX
        self.listeners: dict[int, Any] = {}
        self.clients: dict[int, Any] = {}
        self.next_client = incarnation * 1_000_000_000
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended = Event()
        self.stopping = False
        self.take(epoch, settings_fd, [(number, os.dup(fd)) for number, fd, _ in listeners])

    def start(self) -> None:
        self.page.put(self.worker, "incarnation", self.incarnation)
        self.page.put(self.worker, "alive", 1)
        gevent.spawn(self.beat)
        gevent.spawn(self.read_mail)

    def take(self, epoch: int, settings: int, listeners: list[tuple[int, int]]) -> None:
        """Use an epoch's settings and listeners."""
        text = os.pread(settings, os.fstat(settings).st_size, 0)
        self.settings = json.loads(text)
        kept = dict(listeners)
        for number in [number for number in self.listeners if number not in kept]:
            self.listeners.pop(number).close()
        for number, descriptor in listeners:
            if number in self.listeners:
                close_now(descriptor)
            else:
                listener: Any = gevent_socket.socket(fileno=descriptor)
                self.listeners[number] = listener
                gevent.spawn(self.accept, number, listener)
        busy = len(self.clients) if self.settings["paused"] else 0
        self.page.put(self.worker, "paused_busy", busy)
        self.page.put(self.worker, "epoch", epoch)

    def accept(self, number: int, listener: Any) -> None:
        while number in self.listeners and not self.stopping:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.next_client += 1
            self.clients[self.next_client] = client
            gevent.spawn(self.echo, self.next_client, client)
            self.page.put(self.worker, "clients", len(self.clients))

    def echo(self, number: int, client: Any) -> None:
        try:
            while data := client.recv(1024):
                client.sendall(data)
        except OSError:
            pass
        finally:
            client.close()
            self.clients.pop(number, None)
            self.page.put(self.worker, "clients", len(self.clients))
            if self.settings["paused"]:
                self.page.put(self.worker, "paused_busy", len(self.clients))
            if self.stopping and not self.clients:
                self.finish()

    def beat(self) -> None:
        count = 0
        while not self.ended.wait(BEAT_S):
            count += 1
            self.page.put(self.worker, "heartbeat", count)

    def read_mail(self) -> None:
        while not self.ended.is_set():
            gevent_socket.wait_read(self.inbox.fileno())
            while (received := receive_descriptors(self.inbox, MAIL_BYTES_MAX, 253)) is not None:
                self.handle(*received)

    def handle(self, data: bytes, descriptors: list[int]) -> None:
        if data[0] == Kind.EPOCH:
            epoch, count = struct.unpack_from("<QB", data, 1)
            numbers = [struct.unpack_from("<IB", data, 10 + 5 * n)[0] for n in range(count)]
            self.take(epoch, descriptors[0], list(zip(numbers, descriptors[1:], strict=True)))
            close_now(descriptors[0])
        elif data[0] == Kind.SHOW:
            rows = [{"id": number, "state": "idle"} for number in self.clients]
            os.write(descriptors[0], json.dumps(rows).encode())
            close_now(descriptors[0])
            close_now(descriptors[1])
        elif data[0] == Kind.ORDER:
            chosen = [int(data[2:])] if data[1] == 1 else list(self.clients)
            ended = [number for number in chosen if number in self.clients]
            for number in ended:
                self.clients[number].shutdown(socket.SHUT_RDWR)
            os.write(descriptors[0], str(len(ended)).encode())
            close_now(descriptors[0])

    def drain(self, most: int, /) -> list[tuple[str, dict[str, Any]]]:
        taken, self.events = self.events[:most], self.events[most:]
        return taken

    def stop(self) -> None:
        self.stopping = True
        self.page.put(self.worker, "alive", 0)
        for listener in self.listeners.values():
            listener.close()
        self.listeners.clear()
        if not self.clients:
            self.finish()

    def stop_now(self) -> None:
        self.stop()
        for client in list(self.clients.values()):
            client.shutdown(socket.SHUT_RDWR)
        self.finish()

    def derive_server_keys(
        self, credential: int, epoch: int, salt: bytes, iterations: int, /
    ) -> None:
        raise ValueError("no password")

    def finish(self) -> None:
        self.ended.set()
        os.eventfd_write(self.event_fd, 1)

    def stats(self) -> dict[str, int]:
        return {"clients": len(self.clients)}

    def heartbeat(self) -> int:
        return self.page.worker(self.worker)["heartbeat"]

    def finished(self) -> bool:
        return self.ended.is_set()
