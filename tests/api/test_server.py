"""The socket the API listens on."""

import asyncio
import socket

import pytest

from paceline.api.server import listen
from paceline.errors import PacelineError


def test_answers_are_not_held_back_by_nagle_s_algorithm():
    """What uvicorn accepts on our socket has TCP_NODELAY, as asyncio sets it."""

    async def accepted():
        seen = asyncio.Queue()

        async def on_connection(reader, writer):
            await seen.put(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        server = await asyncio.start_server(on_connection, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname())
            value = await seen.get()
            writer.close()
            await writer.wait_closed()
        return value

    assert asyncio.run(accepted())


def test_a_port_that_is_taken_is_said():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PacelineError, match=f"port {port}") as caught:
            listen("127.0.0.1", port)
    assert "--port 0" in caught.value.help


def test_the_socket_of_an_ipv6_address_is_one():
    with listen("::1", 0) as listener:
        assert listener.family == socket.AF_INET6
