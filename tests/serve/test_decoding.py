"""Images are decoded in other processes, to the same pixels, and a process that takes too long is killed."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hostile_images import many_scans, png
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec
from sightline.serve import decoding
from sightline.serve.decoding import DecoderPool
from sightline.serve.shared_pixels import INITIAL_BYTES, SharedPixels
from synthetic_images import encode_png

SPEC = PreprocessingSpec(8, 8)
# A decoder whose code is replaced in its own process alone, in the place of one that a hostile image keeps busy.
PATCHED_CHILD = (
    "import os, pickle, signal, sys, time; sys.path[:], shared = pickle.load(sys.stdin.buffer); "
    "from sightline.preprocessing import PreprocessingSpec; from sightline.serve.decoder_process import main; "
    "decode = PreprocessingSpec.decode; "
    "PreprocessingSpec.decode = lambda spec, data: ({body}); main(shared)"
)


@asynccontextmanager
async def open_pool(seconds: float = 60, count: int = 1) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(seconds=seconds, count=count)
    try:
        yield pool
    finally:
        pool.close()


def run_with_pool(use: Callable[[DecoderPool], Awaitable[None]], seconds: float = 60, count: int = 1) -> None:
    async def run() -> None:
        async with open_pool(seconds, count) as pool:
            await use(pool)

    asyncio.run(run())


def patch_child(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Replace what a child does with bytes that no decoder knows; others are decoded as ever."""
    body = f"({body}) if bytes(data) == b'hostile' else decode(spec, data)"
    monkeypatch.setattr(decoding, "CHILD_CODE", PATCHED_CHILD.replace("{body}", body))


def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickle", "tomllib", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)

    async def use(pool: DecoderPool) -> None:
        assert (await pool.decode(png(8, 8), SPEC)).shape == (8, 8, 3)

    run_with_pool(use)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("has_shared_memory", [True, False])
def test_pixels_and_refusals_are_those_of_the_decoder(
    has_shared_memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_shared_memory:
        monkeypatch.setattr(SharedPixels, "create", lambda: None)
    large = png(3000, 3000)  # more than LARGE_PIXELS

    async def use(pool: DecoderPool) -> None:
        for image, spec in product((encode_png(), large), (SPEC, PreprocessingSpec(1200, 1000), SPEC)):
            np.testing.assert_array_equal(await pool.decode(image, spec), spec.decode(image))
        for image in (b"", b"no image", encode_png()[:40], many_scans(64, 400)):
            with pytest.raises(ImageError) as expected:
                SPEC.decode(image)
            with pytest.raises(ImageError) as error:
                await pool.decode(image, SPEC)
            assert str(error.value) == str(expected.value)

    run_with_pool(use)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the shared memory")
def test_a_process_that_a_hostile_image_took_over_cannot_take_the_memory_from_the_server() -> None:
    shared = SharedPixels.create()
    assert shared is not None
    with pytest.raises(PermissionError):
        os.ftruncate(shared.file, 0)
    shared.reserve(2 * INITIAL_BYTES)
    other = SharedPixels(shared.file)
    other.write(np.full((2, INITIAL_BYTES), 7, np.uint8))
    assert (shared.read((2, INITIAL_BYTES)) == 7).all()
    shared.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the shared memory")
def test_pixels_come_by_the_pipe_where_shared_memory_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    async def use(pool: DecoderPool) -> None:
        np.testing.assert_array_equal(await pool.decode(encode_png(), SPEC), SPEC.decode(encode_png()))

    monkeypatch.setattr(os, "memfd_create", refuse)
    run_with_pool(use)


def test_the_memory_of_processes_is_given_back() -> None:
    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        await pool.decode(encode_png(), SPEC)

    before = list_descriptors()
    run_with_pool(use, count=2)
    assert list_descriptors() == before


def test_a_process_that_cannot_be_started_leaves_no_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async def use(pool: DecoderPool) -> None:
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                await pool.decode(encode_png(), SPEC)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = list_descriptors()
    run_with_pool(use)
    assert list_descriptors() == before


def list_descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else []


def test_an_image_that_takes_too_long_costs_its_process_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "time.sleep(1000)")

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        with pytest.raises(ImageError, match=r"decoding takes more than 0\.8 seconds"):
            await pool.decode(b"hostile", SPEC)
        np.testing.assert_array_equal(await pool.decode(encode_png(), SPEC), SPEC.decode(encode_png()))

    run_with_pool(use, seconds=0.8)


def test_a_second_warm_up_starts_no_process_beyond_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "time.sleep(0.3)")

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        request = asyncio.create_task(pool.decode(b"hostile", SPEC))
        while pool._idle:  # noqa: ASYNC110  # what is seen of it from outside
            await asyncio.sleep(0)
        await pool.warm_up()
        assert len(pool._running) == 1
        await asyncio.gather(request, return_exceptions=True)

    run_with_pool(use)


def test_an_image_that_ends_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "os.kill(os.getpid(), signal.SIGSEGV)" if os.name == "posix" else "os._exit(3)")

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(ImageError, match="decoding ended its process"):
            await pool.decode(b"hostile", SPEC)
        np.testing.assert_array_equal(await pool.decode(encode_png(), SPEC), SPEC.decode(encode_png()))

    run_with_pool(use)


def test_a_fault_of_the_decoder_is_not_one_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "1 / 0")

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await pool.decode(b"hostile", SPEC)
        await pool.decode(encode_png(), SPEC)

    run_with_pool(use)


def test_what_libraries_print_about_an_image_is_not_in_the_log_of_the_server(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prints = "(os.write(1, b'libtiff: bad word'), os.write(2, b'libtiff: bad word'), print('a fault', file=sys.stderr))"
    patch_child(monkeypatch, f"{prints} and decode(spec, data)")

    async def use(pool: DecoderPool) -> None:
        with pytest.raises(ImageError, match="not an image"):
            await pool.decode(b"hostile", SPEC)

    run_with_pool(use)
    assert capfd.readouterr() == ("", "a fault\n")


def test_a_process_that_ended_while_idle_is_replaced() -> None:
    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        (decoder,) = pool._running
        assert decoder._child is not None
        decoder._child.kill()
        decoder._child.wait()
        await pool.decode(encode_png(), SPEC)

    run_with_pool(use)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the threads are listed by Linux")
def test_a_process_has_one_thread_on_any_number_of_cores() -> None:
    """Each of the threads that NumPy starts takes some of the address space, which is limited."""

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        (decoder,) = pool._running
        assert decoder._child is not None
        status = await asyncio.to_thread(Path(f"/proc/{decoder._child.pid}/status").read_text)
        assert "\nThreads:\t1\n" in status

    run_with_pool(use)


def test_a_process_that_was_killed_just_after_its_image_is_replaced() -> None:
    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        (decoder,) = pool._running
        decoder.kill()  # as for an image that was done at its deadline
        await pool.decode(encode_png(), SPEC)
        assert decoder not in pool._running
        assert len(pool._running) == 1

    run_with_pool(use)


def test_a_request_that_is_cancelled_while_it_waits_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "time.sleep(0.3)")

    async def use(pool: DecoderPool) -> None:
        first = asyncio.create_task(pool.decode(b"hostile", SPEC))
        waiting = [asyncio.create_task(pool.decode(b"hostile", SPEC)) for _ in range(1000)]
        await asyncio.sleep(0)
        for request in waiting:
            request.cancel()
        first.cancel()  # its image is decoded to the end; nobody waits for it
        assert (await pool.decode(encode_png(), SPEC)).shape == (8, 8, 3)  # and not 1000 times 0.3 s later

    run_with_pool(use)


def test_the_time_of_an_image_begins_with_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "[time.sleep(0.5), __import__('numpy').zeros((8, 8, 3))][1]")

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        answers = await asyncio.gather(*(pool.decode(b"hostile", SPEC) for _ in range(4)))  # the last after 1.5 s
        assert [answer.shape for answer in answers] == [(8, 8, 3)] * 4

    run_with_pool(use, seconds=1.2)


def test_an_image_that_is_ready_for_a_process_is_left_out_if_its_client_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded = tmp_path / "decoded"
    patch_child(monkeypatch, f"[time.sleep(0.3), open({str(decoded)!r}, 'a').write('x'), decode(spec, b'')][2]")

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        first, second = (asyncio.create_task(pool.decode(b"hostile", SPEC)) for _ in range(2))
        await asyncio.sleep(0.1)  # both have a place, the first a process
        second.cancel()
        await asyncio.wait([first, second])
        await pool.decode(encode_png(), SPEC)
        assert second.cancelled()

    run_with_pool(use)
    assert decoded.read_text() == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists on Linux only")
def test_closing_ends_all_processes_even_busy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_child(monkeypatch, "time.sleep(1000)")
    numbers: list[int] = []

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        numbers.extend(decoder._child.pid for decoder in pool._running if decoder._child is not None)
        request = asyncio.create_task(pool.decode(b"hostile", SPEC))
        await asyncio.sleep(0.05)
        pool.close()
        with pytest.raises(ImageError, match=f"signal {signal.SIGKILL.value}"):
            await request

    run_with_pool(use, count=2)
    assert len(numbers) == 2
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


def test_large_images_are_decoded_one_at_a_time_and_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hold = (
        "def decode_large(spec):\n"
        "    with module._large_image_lock:\n"
        f"        os.mkdir({str(tmp_path / 'busy')!r})\n"  # fails if another one is at it
        "        time.sleep(0.6)\n"
        f"        os.rmdir({str(tmp_path / 'busy')!r})\n"
        "    return decode(spec, PNG)\n"
    )
    patch_child(monkeypatch, "decode_large(spec)")
    prepare = (
        f"from sightline.preprocessing import spec as module; PNG = {encode_png()!r}; exec({hold!r}); main(shared)"
    )
    monkeypatch.setattr(decoding, "CHILD_CODE", decoding.CHILD_CODE.replace("main(shared)", prepare))

    async def use(pool: DecoderPool) -> None:
        await pool.warm_up()
        large = [asyncio.create_task(pool.decode(b"hostile", SPEC)) for _ in range(4)]
        await asyncio.sleep(0.1)
        large.pop().cancel()
        large.pop(0).cancel()  # it is decoded to its end before the next
        await pool.decode(encode_png(), SPEC)
        assert not any(task.done() and not task.cancelled() for task in large)
        await asyncio.gather(*large)

    run_with_pool(use, seconds=60, count=2)


def test_a_process_does_not_import_what_a_server_needs() -> None:
    code = (
        "import sys; import sightline.serve.decoder_process; print(sorted({'asyncio', 'starlette'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
