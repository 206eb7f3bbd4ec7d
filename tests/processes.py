"""For tests that start two processes which find each other."""

from __future__ import annotations

import socket


def together() -> dict[str, str]:
    """The environment of two processes of one run, but for RANK; the port is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
