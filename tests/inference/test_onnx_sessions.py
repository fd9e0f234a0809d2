"""A file on the CPU: a lone call has all threads, others run beside each other, and all give the same bits."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import build_network, random_images
from sightline.export import keras_to_onnx
from sightline.inference.predictor import Streams
from sightline.inference.runtimes import onnx, onnx_sessions
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.runtimes.onnx_sessions import StreamedSession, create_session
from sightline.models.head import OUTPUTS, PROBABILITIES
from sightline.preprocessing import PreprocessingSpec

pytestmark = pytest.mark.usefixtures("no_thread_left")

STREAMS = Streams(2, 1, 1)
PIXELS = random_images(13, 32)


@cache
def make_file() -> bytes:
    return keras_to_onnx.convert_model(build_network("efficientnet-lite0").model)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of the sessions that are created from now on."""
    counts: list[int] = []

    def create(model: bytes, count: int = 0) -> object:
        counts.append(count)
        return create_session(model, count)

    monkeypatch.setattr(onnx_sessions, "create_session", create)
    return counts


def run(session: StreamedSession, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    return session.run(list(OUTPUTS), {"pixels": pixels})


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_any_number_of_rows_gives_the_same_bits_alone_and_beside_others(rows: int) -> None:
    session = StreamedSession(make_file(), Streams(2, rows, 1), 2)
    expected = create_session(make_file(), 2).run(list(OUTPUTS), {"pixels": PIXELS})
    for size in (1, 2, 6, 13):
        slices = [slice(start, start + size) for start in range(0, 13, size)]
        alone = [run(session, PIXELS[rows]) for rows in slices]
        with ThreadPoolExecutor(4) as pool:
            beside = list(pool.map(lambda rows: run(session, PIXELS[rows]), slices))
        for results in (alone, beside):
            for array, whole in zip(map(np.concatenate, zip(*results, strict=True)), expected, strict=True):
                np.testing.assert_array_equal(array, whole)


def test_a_lone_image_has_all_threads_and_needs_no_other_session(threads: list[int]) -> None:
    session = StreamedSession(make_file(), STREAMS, 2)
    run(session, PIXELS[:1])
    assert threads == [2]
    run(session, PIXELS)
    run(session, PIXELS)
    assert threads == [2, 1]


def test_calls_that_begin_together_create_one_session(threads: list[int]) -> None:
    session = StreamedSession(make_file(), STREAMS, 2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: run(session, PIXELS), range(4)))
    assert threads == [2, 1]


def test_one_session_is_enough_where_memory_is_short(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.process.count_memory", lambda: 512 << 20)
    run(StreamedSession(make_file(), STREAMS, 2), PIXELS)
    assert threads == [2]


def test_a_call_that_fails_leaves_the_next_one_alone() -> None:
    session = StreamedSession(make_file(), STREAMS, 2)
    with pytest.raises(Exception, match="rank"):
        run(session, PIXELS[:1, 0])
    with session._count_call() as is_alone:
        assert is_alone
        with session._count_call() as is_second_alone:
            assert not is_second_alone


def test_a_large_file_has_one_session(monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
    file, spec = make_file(), PreprocessingSpec(32, 32, 3)
    assert OnnxPredictor(file, ("a", "b", "c"), spec, 2).streams is not None
    monkeypatch.setattr(onnx, "MAX_STREAMED_BYTES", len(file) - 1)
    monkeypatch.setattr(onnx, "create_session", onnx_sessions.create_session)
    threads.clear()
    predictor = OnnxPredictor(file, ("a", "b", "c"), spec, 2)
    assert predictor.streams is None
    assert predictor.probabilities(PIXELS).shape == (13, 3)
    assert threads == [2]


def test_a_copy_has_the_streams_of_the_cores_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(OnnxPredictor(make_file(), ("a", "b", "c"), PreprocessingSpec(32, 32, 3)))
    monkeypatch.setattr("sightline.process.count_cores", lambda: 1)
    copy = pickle.loads(content)  # noqa: S301  # our own
    assert copy.streams.count == 1


def test_a_copy_in_another_process_has_sessions_of_its_own() -> None:
    predictor = OnnxPredictor(make_file(), ("a", "b", "c"), PreprocessingSpec(32, 32, 3), 2)
    copy = pickle.loads(pickle.dumps(predictor))  # noqa: S301  # our own
    assert copy.streams == predictor.streams
    np.testing.assert_array_equal(copy.probabilities(PIXELS), predictor.probabilities(PIXELS))
    assert copy._session.run([PROBABILITIES], {"pixels": PIXELS})[0].shape == (13, 3)
