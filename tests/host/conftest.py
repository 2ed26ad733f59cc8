"""One host server for all host tests of a session, with the pack loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dev
from hosting.server import HostServer


@pytest.fixture(scope="session")
def host_server() -> Iterator[HostServer]:
    """A running server with the pack. Shared: tests leave their files under names of their own."""
    with HostServer(pack=dev.ROOT) as server:
        yield server


@pytest.fixture
def fresh_server() -> Iterator:
    """Starts further servers with other settings, all ended with the test: `fresh_server("--cache-none")`."""
    started: list[HostServer] = []

    def start(*extra: str, **settings) -> HostServer:
        server = HostServer(extra=extra, **{"pack": dev.ROOT, **settings})
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()
