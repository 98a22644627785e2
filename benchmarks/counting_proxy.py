"""Count the bytes of each direction of TCP connections, by a proxy that does not parse them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

BUFFER_BYTES = 1 << 18


@dataclass
class Counted:
    """The port of the proxy, and the bytes `sent` to the server and `received` from it."""

    port: int
    sent: int = 0
    received: int = 0


@contextmanager
def counting_proxy(target_port: int) -> Iterator[Counted]:
    """Serve a proxy of 127.0.0.1:`target_port`; a broken connection is closed on both sides."""
    listener = socket.create_server(("127.0.0.1", 0))
    counted = Counted(listener.getsockname()[1])

    def move(source: socket.socket, target: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                setattr(counted, name, getattr(counted, name) + len(data))
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", target_port))
                for ends in ((client, server, "sent"), (server, client, "received")):
                    threading.Thread(target=move, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield counted
    finally:
        listener.close()
