"""Decode images in separate processes, which are killed when an image takes too long."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.decoder_process import HEADER, LARGE, LENGTH, PIXELS, REFUSED, SHARED, read_exactly
from sightline.serve.shared_pixels import SharedPixels

CHILD_CODE = (
    "import pickle, sys; sys.path[:], shared = pickle.load(sys.stdin.buffer); "
    "from sightline.serve.decoder_process import main; main(shared)"
)
START_SECONDS = 60.0  # limit for a new process to become ready
KILL_SECONDS = 0.1  # between checks of a process that is being killed


@dataclass(slots=True, eq=False)
class _Job:
    """An encoded image to decode; `decoder` is its process, set when its turn comes."""

    content: bytes | bytearray
    preprocess: PreprocessingSpec
    may_be_large: bool = False
    decoder: _Decoder | None = None
    is_abandoned: bool = False


class DecoderPool:
    """Decodes in up to `count` processes (default: one per core), each image within `seconds`.

    For one event loop, shared by all models of a server. A process starts when it is first needed, and again after it
    was killed. Each has another image ready, so that it need not wait for the event loop. Images above
    `preprocessing.LARGE_PIXELS` are decoded one at a time, so that memory is bounded and the other processes stay free
    for other images; there are at least two processes.
    """

    def __init__(self, *, seconds: float, count: int | None = None) -> None:
        self._seconds = seconds
        self._count = count or max(2, process.count_cores())
        self._free, self._free_for_large = asyncio.Semaphore(2 * self._count), asyncio.Semaphore(1)
        self._threads = ThreadPoolExecutor(self._count, "decode")  # each thread waits for the answer of one process
        self._idle: list[_Decoder] = []  # the threads take decoders from here and put them back
        self._running: set[_Decoder] = set()
        self._closed = False

    async def warm_up(self) -> None:
        """Start all processes and wait until they are ready."""
        decoders = [self._take() for _ in range(self._count - len(self._running))]  # running ones are idle or busy
        loop = asyncio.get_running_loop()

        async def start(decoder: _Decoder) -> None:
            await self._watch(lambda: decoder, loop.run_in_executor(self._threads, decoder.start))

        errors = await asyncio.gather(*map(start, decoders), return_exceptions=True)
        for decoder, error in zip(decoders, errors, strict=True):
            if error is None:
                self._idle.append(decoder)
            else:
                self._running.discard(decoder)
        for error in filter(None, errors):
            raise error

    async def decode(self, content: bytes | bytearray, preprocess: PreprocessingSpec) -> NDArray[np.uint8]:
        """Decode an encoded image to pixels uint8 [H, W, C] as `preprocess` specifies.

        Raises ImageError as `PreprocessingSpec.decode` does, and for an image that takes too long or ends its process.
        """
        await self._free.acquire()  # a request cancelled here is never decoded
        outcome = await self._finish(_Job(content, preprocess))
        if outcome is None:
            await self._free_for_large.acquire()
            try:
                await self._free.acquire()
            except asyncio.CancelledError:
                self._free_for_large.release()
                raise
            outcome = await self._finish(_Job(content, preprocess, may_be_large=True))
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome

    def close(self) -> None:
        """Kill the processes; images that are being decoded are lost."""
        self._closed = True
        for decoder in list(self._running):
            decoder.kill()
        while idle := self._pop_idle():
            idle.end()  # the threads end the busy ones
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _finish(self, job: _Job) -> NDArray[np.uint8] | Exception | None:
        """Return the result of `_decode`; if the request is cancelled, skip the image unless its turn has come."""
        try:
            return await asyncio.shield(asyncio.ensure_future(self._decode(job)))
        except asyncio.CancelledError:
            job.is_abandoned = True
            raise

    async def _decode(self, job: _Job) -> NDArray[np.uint8] | Exception | None:
        """Return the pixels or the error of one image, None for a large image, and free its place.

        Runs to its end, even if nobody waits for it.
        """
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._run, job)
            pixels: NDArray[np.uint8] | None = await self._watch(lambda: job.decoder, work)
        except Exception as error:  # noqa: BLE001  # raised in the request
            return error
        else:
            return pixels
        finally:
            self._free.release()
            if job.may_be_large:
                self._free_for_large.release()

    def _run(self, job: _Job) -> NDArray[np.uint8] | None:
        """Decode an image in a process that is idle, or in a new one."""
        if job.is_abandoned:
            return None
        while (decoder := self._pop_idle() or self._take()).was_killed:  # killed after its image was done
            decoder.end()
            self._running.discard(decoder)
        decoder.extend()  # allows the time of a start until the image's own limit is set
        job.decoder = decoder
        if self._closed:
            decoder.kill()
        try:
            return decoder.decode(job)
        finally:
            if self._closed:
                decoder.end()
            elif decoder.is_alive:
                self._idle.append(decoder)
            else:
                self._running.discard(decoder)

    def _pop_idle(self) -> _Decoder | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _take(self) -> _Decoder:
        decoder = _Decoder(self._seconds)
        self._running.add(decoder)
        return decoder

    async def _watch(self, find_decoder: Callable[[], _Decoder | None], work: asyncio.Future[Any]) -> Any:
        """Wait for `work` of a decoder, which may not have begun yet, and kill its process when it is overdue."""
        while not work.done():
            decoder = find_decoder()
            remaining = self._seconds if decoder is None else min(decoder.remaining, self._seconds)
            await asyncio.wait([work], timeout=remaining or KILL_SECONDS)
            decoder = find_decoder()
            if decoder is not None and (self._closed or (not work.done() and decoder.remaining <= 0)):
                decoder.kill()
        return work.result()


class _Decoder:
    """One process; `start` and `decode` block, and must be called from one thread at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._shared: SharedPixels | None = None
        self.was_killed = False
        self._deadline = time.monotonic() + START_SECONDS

    @property
    def is_alive(self) -> bool:
        return self._child is not None and not self.was_killed and self._child.poll() is None

    @property
    def remaining(self) -> float:
        """The seconds until the process is overdue."""
        return max(0.0, self._deadline - time.monotonic())

    def extend(self) -> None:
        """Move the deadline to allow the time of a start."""
        self._deadline = time.monotonic() + START_SECONDS

    def kill(self) -> None:
        """Kill the process, which unblocks the thread that waits for it."""
        self.was_killed = True
        if self._child is not None:
            self._child.kill()

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.extend()
        shared = self._shared = SharedPixels.create()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD_CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # each thread of NumPy's matrix products, one per core, would take 40 MB of the limited address space
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the server alone
                pass_fds=[] if shared is None else [shared.file],
            )
        except OSError:
            self._release_memory()
            raise
        if self.was_killed:  # while it was starting
            self._child.kill()
        try:
            self._write(pickle.dumps((sys.path, None if shared is None else shared.file)))
            self._read(1)
        except (OSError, EOFError):
            raise RuntimeError(f"A process for decoding did not start ({self.reap()}).") from None

    def decode(self, job: _Job) -> NDArray[np.uint8] | None:
        """Return the pixels uint8 [H, W, C], None for a large image unless `job` allows it."""
        if not self.is_alive:
            if self._child is not None:  # the process ended while idle
                self.reap()
            self.start()
        self._deadline = time.monotonic() + self._seconds
        try:
            return self._exchange(job)
        except (OSError, EOFError):
            overdue, reason = self.remaining <= 0, self.reap()
            if overdue:
                raise ImageError(f"decoding takes more than {self._seconds:g} seconds") from None
            raise ImageError(f"decoding ended its process ({reason})") from None

    def _exchange(self, job: _Job) -> NDArray[np.uint8] | None:
        spec, shape, content = pickle.dumps(job.preprocess), job.preprocess.shape, job.content
        if self._shared is not None:
            self._shared.reserve(math.prod(shape))
        self._write(b"".join((HEADER.pack(job.may_be_large, len(spec), len(content)), spec, content)))
        kind = bytes(self._read(1))
        if kind == LARGE:
            return None
        if kind == SHARED:
            assert self._shared is not None
            return self._shared.read(shape)
        if kind == PIXELS:
            return np.frombuffer(self._read(math.prod(shape)), np.uint8).reshape(shape)
        message = self._read(LENGTH.unpack(self._read(LENGTH.size))[0]).decode()
        if kind == REFUSED:
            raise ImageError(message)
        raise RuntimeError(f"Internal error while decoding: {message}")

    def _write(self, data: bytes | bytearray) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[self._child.stdin.write(remaining) :]

    def _read(self, count: int) -> bytearray:
        assert self._child is not None
        assert self._child.stdout is not None
        return read_exactly(self._child.stdout, count)

    def end(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self.reap()

    def reap(self) -> str:
        """End the process and return how it ended."""
        assert self._child is not None
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)  # the process may just be ending
        self._child.kill()
        code = self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            stream.close()
        self._release_memory()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _release_memory(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None
