"""Decode images in processes of their own, which are killed when an image takes too long."""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec, use_large_image_lock

CHILD_CODE = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from sightline.serve.decoding import main; main()"
)
START_SECONDS = 60.0  # within which a new process must be ready
KILL_SECONDS = 0.1  # between looks at a process that is being killed
BYTES_PER_PIXEL = 64  # of the address space that decoding may take, beyond the first GiB

_READY, _PIXELS, _REFUSED, _FAULT, _LARGE = b"R", b"P", b"E", b"F", b"L"
_LENGTH = struct.Struct("<Q")


class DecoderPool:
    """Decodes with `preprocess` in up to `count` processes (default: one per core), each image within `seconds`.

    For one event loop. A process starts when it is first needed, and again after it was killed. Images above
    `preprocessing.LARGE_PIXELS` are decoded one at a time, whatever the number of processes.
    """

    def __init__(self, preprocess: PreprocessingSpec, *, seconds: float, count: int | None = None) -> None:
        self._preprocess, self._seconds = preprocess, seconds
        self._count = count or process.count_cores()
        self._free = asyncio.Semaphore(self._count)
        self._threads = ThreadPoolExecutor(self._count, "decode")  # each waits for the answer of one process
        self._idle: list[_Decoder] = []
        self._running: set[_Decoder] = set()
        self._large_image_lock = threading.Lock()
        self._closed = False

    async def warm_up(self) -> None:
        """Start all processes and wait until they are ready."""
        decoders = [self._take() for _ in range(self._count - len(self._idle))]
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._watch(d, loop.run_in_executor(self._threads, d.start)) for d in decoders))
        self._idle += decoders

    async def decode(self, content: bytes | bytearray) -> NDArray[np.uint8]:
        """Decode an encoded image to pixels uint8 [H, W, C].

        Raises ImageError as `PreprocessingSpec.decode` does, for an image that takes too long, and for one that ended
        its process.
        """
        await self._free.acquire()  # a request that is cancelled here is never decoded
        outcome = await asyncio.shield(asyncio.ensure_future(self._decode(content)))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Kill the processes; images that are being decoded are lost."""
        self._closed = True
        for decoder in self._running:
            decoder.kill()
        for decoder in self._idle:
            decoder.reap()  # the threads of the others do
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _decode(self, content: bytes | bytearray) -> NDArray[np.uint8] | Exception:
        """Return the pixels or the error of one image, and free its process; runs to its end."""
        decoder = self._idle.pop() if self._idle else self._take()
        try:
            loop = asyncio.get_running_loop()
            pixels: NDArray[np.uint8] = await self._watch(
                decoder, loop.run_in_executor(self._threads, decoder.decode, content)
            )
        except Exception as error:  # noqa: BLE001  # raised in the request
            return error
        else:
            return pixels
        finally:
            if decoder.is_alive:
                self._idle.append(decoder)
            else:
                self._running.discard(decoder)
            self._free.release()

    def _take(self) -> _Decoder:
        decoder = _Decoder(self._preprocess, self._seconds, self._large_image_lock)
        self._running.add(decoder)
        return decoder

    async def _watch(self, decoder: _Decoder, work: asyncio.Future[Any]) -> Any:
        """Wait for `work` of a decoder, and kill its process when it is overdue."""
        while not work.done():
            await asyncio.wait([work], timeout=decoder.remaining or KILL_SECONDS)
            if self._closed or (not work.done() and decoder.remaining <= 0):
                decoder.kill()
        return work.result()


class _Decoder:
    """One process; `start` and `decode` block, and are called in one thread at a time."""

    def __init__(self, preprocess: PreprocessingSpec, seconds: float, large_image_lock: threading.Lock) -> None:
        self._preprocess, self._seconds, self._large_image_lock = preprocess, seconds, large_image_lock
        self._child: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._deadline: float | None = None  # None while it waits for another large image

    @property
    def is_alive(self) -> bool:
        return self._child is not None and not self._killed and self._child.poll() is None

    @property
    def remaining(self) -> float:
        """The seconds until the process is overdue."""
        deadline = self._deadline
        return self._seconds if deadline is None else max(0.0, deadline - time.monotonic())

    def kill(self) -> None:
        """Kill the process, so that the thread that waits for it goes on."""
        self._killed = True
        if self._child is not None:
            self._child.kill()

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self._deadline = time.monotonic() + START_SECONDS
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD_CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the server
        )
        if self._killed:  # in the meantime
            self._child.kill()
        try:
            self._write(pickle.dumps(sys.path) + pickle.dumps(self._preprocess))
            self._read(1)
        except (OSError, EOFError):
            raise RuntimeError(f"A process for decoding did not start ({self.reap()}).") from None
        self._deadline = None

    def decode(self, content: bytes | bytearray) -> NDArray[np.uint8]:
        """Return the pixels uint8 [H, W, C]."""
        if not self.is_alive:
            if self._child is not None:  # it ended while it was idle
                self.reap()
            self.start()
        self._deadline = time.monotonic() + self._seconds
        try:
            return self._exchange(content)
        except (OSError, EOFError):
            overdue, reason = self.remaining <= 0, self.reap()
            if overdue:
                raise ImageError(f"decoding takes more than {self._seconds:g} seconds") from None
            raise ImageError(f"decoding ended its process ({reason})") from None
        finally:
            self._deadline = None

    def _exchange(self, content: bytes | bytearray) -> NDArray[np.uint8]:
        self._write(_LENGTH.pack(len(content)))
        self._write(content)
        kind = bytes(self._read(1))
        if kind == _LARGE:
            kind = self._decode_alone()
        if kind == _PIXELS:
            shape = self._preprocess.shape
            return np.frombuffer(self._read(shape[0] * shape[1] * shape[2]), np.uint8).reshape(shape)
        message = self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]).decode()
        if kind == _REFUSED:
            raise ImageError(message)
        raise RuntimeError(f"Internal error while decoding: {message}")

    def _decode_alone(self) -> bytes:
        """Let the process go on as the only one with a large image, and return the kind of its answer."""
        self._deadline = None
        with self._large_image_lock:
            self._deadline = time.monotonic() + self._seconds
            self._write(_LARGE)
            return bytes(self._read(1))

    def _write(self, data: bytes | bytearray) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[self._child.stdin.write(remaining) :]

    def _read(self, count: int) -> bytearray:
        assert self._child is not None
        assert self._child.stdout is not None
        return _read_exactly(self._child.stdout, count)

    def reap(self) -> str:
        """End the process and return how it ended."""
        assert self._child is not None
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)  # it may be ending
        self._child.kill()
        code = self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            stream.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _read_exactly(stream: IO[bytes], count: int) -> bytearray:
    """Read `count` bytes; raises EOFError if there are fewer."""
    content, done = bytearray(count), 0
    view = memoryview(content)
    while done < count:
        size = stream.readinto(view[done:])  # type: ignore[attr-defined]  # of raw and buffered streams alike
        if not size:
            raise EOFError
        done += size
    return content


# ---- in the child ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Decode images from standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)
    preprocess: PreprocessingSpec = pickle.load(requests)  # noqa: S301  # from the process that started this one
    _limit_memory((1 << 30) + preprocess.max_megapixels * 10**6 * BYTES_PER_PIXEL)
    use_large_image_lock(_Permit(requests, answers))
    answers.write(_READY)
    with suppress(EOFError, BrokenPipeError):
        while True:
            content = _read_exactly(requests, _LENGTH.unpack(_read_exactly(requests, _LENGTH.size))[0])
            try:
                kind, answer = _PIXELS, preprocess.decode(bytes(content)).tobytes()
            except ImageError as error:
                kind, answer = _REFUSED, str(error).encode()
            except Exception as error:  # noqa: BLE001  # reported by the server
                kind, answer = _FAULT, repr(error).encode()
            remaining = memoryview(kind + (answer if kind == _PIXELS else _LENGTH.pack(len(answer)) + answer))
            while remaining:
                remaining = remaining[answers.write(remaining) :]


class _Permit(AbstractContextManager[None]):
    """The lock of large images, held by the server: entered when it permits, released with the answer."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers

    def __enter__(self) -> None:
        self._answers.write(_LARGE)
        if _read_exactly(self._requests, 1) != _LARGE:
            raise EOFError

    def __exit__(self, *_: object) -> None:
        return None


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(ValueError, OSError):  # above the limit of this process, which then holds
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
