"""A network of our own between a worker and its Redis: a TCP relay that can be cut, or fall silent.

It stands in for a network that fails. Cut, connections break and new ones are refused; silent, nothing goes through and
nobody is told, as behind a firewall that drops packets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from tests.services import LOOPBACK


class Relay:
    """Relays `port`, a free one, to the Redis at `target`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        Thread(target=self._loop.run_forever, name="relay", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def cut(self) -> None:
        """Break every connection, and refuse others."""
        self._do(self._cut)

    def silence(self) -> None:
        """Let nothing through, and say nothing."""
        self._do(self._open.clear)

    def mend(self) -> None:
        """Let all through again."""
        self._do(self._mend)

    def _do(self, change: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(change)

    def _cut(self) -> None:
        self._refuses = True
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._refuses = False
        self._open.set()

    async def _listen(self) -> None:
        self._open.set()
        server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            back, there = await asyncio.open_connection(LOOPBACK, self.target)
            self._writers.add(there)
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        except OSError:
            pass
        finally:
            for end in (writer, there):
                if end:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
