"""Rank 0's end: a server that takes the shares of the other ranks."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from monitor.ranks import _handshake as handshake
from monitor.ranks._share import unpack
from monitor.ranks._sums import StepSums

HANDSHAKE_SECONDS = 5.0
MAX_STRANGERS = 64
"""Connections that have not proved yet that they are a rank of this run."""


class ShareReceiver:
    """Take shares on a thread of its own.

    Args:
        listener: a socket that listens.
        secret: of the run, which every rank knows.
        sums: what takes them.
        on_error: takes the exception of a server that cannot run.
    """

    def __init__(
        self, listener: socket.socket, secret: str, sums: StepSums, on_error: Callable[[Exception], None]
    ) -> None:
        self._listener, self._secret, self._sums, self._on_error = listener, secret.encode(), sums, on_error
        self._strangers: dict[asyncio.StreamWriter, None] = {}
        self._is_over = False
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="monitor-shares", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the machine has none left."""
        self._thread.start()

    def stop(self, *, is_over: bool = True) -> None:
        """Have the server end; wait for nothing. Unless the run ``is_over``, another watcher takes its place."""
        self._is_over = is_over
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(stopping.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - the run continues without the shares of the others
            self._on_error(error)

    async def _serve(self) -> None:
        self._stopping, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve_one, sock=self._listener, limit=handshake.MAX_BYTES)
        async with server:
            await self._stopping.wait()
            for writer in tuple(self._writers.values()):
                writer.write(handshake.OVER if self._is_over else b"")
                writer.close()
            for writer in tuple(self._strangers):
                writer.close()
            await asyncio.sleep(0.01)  # until they are closed: the loop ends

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            rank = await self._admit(reader, writer)
            if rank is not None:
                await self._take_from(rank, reader, writer)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # it is gone, or none of ours, or the server ends
        finally:
            writer.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        if len(self._strangers) >= MAX_STRANGERS:  # the oldest goes: a rank says at once who it is
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.close()
        self._strangers[writer] = None
        try:
            return await asyncio.wait_for(self._greet(reader, writer), HANDSHAKE_SECONDS)
        finally:
            self._strangers.pop(writer, None)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        nonce = secrets.token_bytes(handshake.NONCE_BYTES)
        writer.write(nonce)
        called = await reader.readexactly(handshake.CALL_BYTES)
        rank = handshake.rank_of(self._secret, nonce, called)
        if rank is None or not 0 < rank < self._sums.num_ranks:
            return None
        writer.write(handshake.answer(self._secret, called))
        await writer.drain()
        return rank

    async def _take_from(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the shares of a rank until it leaves; a later connection of the same rank takes the place of this."""
        before, self._writers[rank] = self._writers.get(rank), writer
        if before is not None:
            before.close()
        try:
            while length := handshake.LENGTH.unpack(await reader.readexactly(handshake.LENGTH.size))[0]:
                if length > handshake.MAX_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                self._sums.add(rank, unpack(await reader.readexactly(length)))
            self._sums.leave(rank)
        finally:
            if self._writers.get(rank) is writer:
                del self._writers[rank]
