"""TLS: the worker's client talks to whom its settings name, and to nobody else.

The embedded server speaks no TLS, so a TLS end in this process stands before it. The certificates in ``tls/`` are
the tests' own, good from 2020 to 2119; each file that identifies somebody holds the key and the certificate.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tamiyo_stream.settings import load_settings
from tamiyo_stream.worker.connection import open_client

FILES = Path(__file__).parent / "tls"
TlsEnd = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def tls_end(redis_url) -> TlsEnd:
    """Context manager: the URL of a TLS end before the server, under ``identity``."""
    port = urlsplit(redis_url).port

    @asynccontextmanager
    async def opened(identity: str = "here", *, clients_verified: bool = False) -> AsyncIterator[str]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(FILES / f"{identity}.pem")
        if clients_verified:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(FILES / "authority.pem")
        links: set[asyncio.Task[None]] = set()

        async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            for ends in ((reader, back), (there, writer)):
                task = asyncio.ensure_future(forward(*ends))
                links.add(task)
                task.add_done_callback(links.discard)

        server = await asyncio.start_server(link, "127.0.0.1", 0, ssl=context)
        try:
            yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            for task in list(links):
                task.cancel()
            await asyncio.gather(*links, return_exceptions=True)

    return opened


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    finally:
        writer.transport.abort()


async def ping(url: str, **files: str) -> bool:
    named = {f"redis_{name}_file": FILES / file for name, file in files.items()}
    async with open_client(load_settings(redis_url=url, **named)) as client:
        return bool(await client.ping())


async def test_a_server_of_the_named_authority_is_spoken_to(tls_end) -> None:
    async with tls_end() as url:
        assert await ping(url, ca="authority.pem")


@pytest.mark.parametrize("files", [{"ca": "other_authority.pem"}, {}])
async def test_a_server_of_no_known_authority_is_not(tls_end, files) -> None:
    async with tls_end() as url:
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            await ping(url, **files)


async def test_a_server_that_is_certified_for_another_name_is_not(tls_end) -> None:
    async with tls_end("elsewhere") as url:
        with pytest.raises(redis.ConnectionError, match=r"not valid for .127\.0\.0\.1"):
            await ping(url, ca="authority.pem")


async def test_a_server_that_asks_for_a_client_certificate_gets_it(tls_end) -> None:
    async with tls_end(clients_verified=True) as url:
        assert await ping(url, ca="authority.pem", cert="client.pem", key="client.pem")
        with pytest.raises(redis.ConnectionError):
            await ping(url, ca="authority.pem")
