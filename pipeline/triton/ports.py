"""Ports for a server that binds them later, by number."""

import errno
import socket
from contextlib import ExitStack

from pipeline.errors import PortInUseError, ServerError


def choose(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """The port for each flag; where 0 is wanted, one that stays free for the server for a minute.

    PortInUseError where a process listens there, ServerError where the host or port cannot be used.
    """
    chosen = {}
    with ExitStack() as sockets:  # all are open at once, so that they differ
        for flag, port in wanted.items():
            listener = sockets.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
                listener.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortInUseError(
                        f"port {port} of {host} is in use: stop what listens there, "
                        f"or give another {flag} (0 takes a free one)"
                    ) from error
                raise ServerError(f"cannot listen on {host}:{port} ({flag}): {error.strerror or error}") from error
            if not port:
                _reserve(listener)
            chosen[flag] = listener.getsockname()[1]
    return chosen


def _reserve(listener: socket.socket) -> None:
    """Leave a connection in TIME_WAIT, closed on the listener's side.

    While it lasts, the kernel gives the port to nobody who asks for a free one, but to one who names it.
    """
    with socket.create_connection(listener.getsockname()) as peer:
        listener.accept()[0].close()
        peer.recv(1)
