"""The engine ray: what is sent, on any machine; and the same files as without it, on two nodes, whatever dies."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sightline as sl
import small_bundles
from command import COLORS, draw_classes
from ray_nodes import list_workers, start_nodes
from s3_server import start_bucket
from sightline import process
from sightline.callbacks import Callback
from sightline.data.storage import LIMITS
from sightline.distributed import ray_cluster
from sightline.errors import DataError, HostError, ImageError, UsageError
from sightline.inference import bundle, ray_engine, stream
from sightline.inference.inputs import InputItem, expand_inputs, make_items
from sightline.inference.prediction_files import Predict
from sightline.inference.results import Prediction
from synthetic_images import encode_png

try:
    import ray
except ImportError:
    ray = None

on_ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(ray is None, reason="Ray is not installed: make test-ray"),
]


SIGHTLINE = [sys.executable, "-m", "sightline"]


class DiesAsItStarts:
    """A model that ends the process of the worker that opens it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


class FailsToStart:
    """A model that cannot be opened."""

    def __reduce__(self) -> Any:
        return int, ("no model",)


class Opens:
    """A model that is what a function returns, in the worker that opens it; the function is sent with its code."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        class Call:
            def __reduce__(_) -> Any:  # noqa: N805  # `self` is that of the model
                return self.function, ()

        assert ray is not None
        return pickle.loads, (ray.cloudpickle.dumps(Call()),)


def copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def describe_batches(items: Iterator[InputItem], batch_size: int) -> list[tuple[int, int]]:
    return [(len(batch.items), batch.size) for batch in ray_engine._cut_batches(items, batch_size)]


class TestWhatIsSent:
    def test_a_file_is_its_path_and_anything_else_its_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("a.png").write_bytes(encode_png(0))
        with zipfile.ZipFile("b.zip", "w") as archive:
            archive.writestr("c.png", encode_png(1))
            archive.writestr("d.png", b"\x89PNG\r\n\x1a\n")
        images = ["a.png", "b.zip", encode_png(2), "missing.png"]
        items = list(make_items(images))
        sent = [copy(ray_engine._SentItem.from_item(item)) for item in items]
        assert [s.path for s in sent] == ["a.png", "b.zip/c.png", "b.zip/d.png", "[2]", "missing.png"]
        assert [s.location for s in sent] == [str(tmp_path / "a.png"), None, None, None, str(tmp_path / "missing.png")]
        assert [s.content for s in sent] == [None, encode_png(1), b"\x89PNG\r\n\x1a\n", encode_png(2), None]
        monkeypatch.chdir("/")  # as a worker, which has another working directory
        for item, received in zip(items[:4], sent[:4], strict=True):
            received_item = received.to_item(LIMITS)
            assert received_item.read() == (encode_png(0) if item.path == "a.png" else item.read())
        with pytest.raises(ImageError, match="cannot be opened: No such file or directory"):
            sent[4].to_item(LIMITS).read()

    def test_an_item_that_cannot_be_read_here_says_why_there(self) -> None:
        def fail() -> bytes:
            raise ImageError("damaged")

        sent = ray_engine._SentItem.from_item(InputItem("x", fail))
        with pytest.raises(ImageError, match="damaged"):
            sent.to_item(LIMITS).read()

    def test_arrays_are_refused(self) -> None:
        (item,) = make_items([np.zeros((8, 8, 3), np.uint8)])
        with pytest.raises(UsageError, match=r"Image \[0\] is an array, but the engine ray takes files"):
            ray_engine._SentItem.from_item(item)

    @pytest.mark.parametrize(("batch_size", "expected"), [(8, [128, 128, 44]), (100, [100, 100, 100]), (300, [300])])
    def test_batches_are_whole_batches_of_the_network(self, batch_size: int, expected: list[int]) -> None:
        items = (InputItem(str(n), bytes, location=str(n)) for n in range(300))
        assert describe_batches(items, batch_size) == [(count, 0) for count in expected]

    def test_large_images_make_small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_engine, "MAX_BATCH_BYTES", 50)
        items = (InputItem(str(n), lambda: bytes(10)) for n in range(20))
        assert describe_batches(items, 4) == [(8, 80), (8, 80), (4, 40)]

    def test_a_file_that_only_this_process_sees_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(encode_png(0))
        (item,) = expand_inputs([path])
        with pytest.raises(HostError, match=r"cannot open .*a\.png, which this process can .*mount the images"):
            ray_engine._check_visible(item, "cannot be opened: No such file or directory")
        path.unlink()
        ray_engine._check_visible(item, "cannot be opened: No such file or directory")


class FakeRay:
    """As much of Ray as the pool uses, in this process: a test draws which reply comes next, and which worker dies."""

    class exceptions:  # noqa: N801  # a module of Ray's
        RayError = type("RayError", (Exception,), {})
        RayActorError = type("RayActorError", (RayError,), {})
        WorkerCrashedError = NodeDiedError = OutOfMemoryError = ObjectLostError = RayActorError

    def __init__(self, draw: Callable[[int], int]) -> None:
        self.draw = draw
        self.calls: dict[int, Callable[[], Any]] = {}
        self.dead: set[Any] = set()
        self.started = 0

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def is_initialized(self) -> bool:
        return True

    def remote(self, actor_class: type) -> Any:
        def start() -> Any:
            self.started += 1
            actor = actor_class()
            return SimpleNamespace(
                **{name: self.make_method(actor, getattr(actor, name)) for name in ("open", "predict")}, actor=actor
            )

        return SimpleNamespace(options=lambda num_cpus: SimpleNamespace(remote=start))

    def make_method(self, actor: Any, method: Callable[..., Any]) -> Any:
        def call(*arguments: Any) -> int:
            def run() -> Any:
                if actor in self.dead:
                    raise self.exceptions.RayActorError("died")
                return method(*arguments)

            self.calls[len(self.calls)] = run
            return len(self.calls) - 1

        return SimpleNamespace(remote=call)

    def wait(self, replies: list[int], timeout: float | None) -> tuple[list[int], list[int]]:
        assert timeout is None
        return [replies[self.draw(len(replies) - 1)]], []

    def get(self, reply: int) -> Any:
        if len(self.dead) < 10 and self.draw(3) == 3:
            raise self.exceptions.RayActorError("died")
        return self.calls[reply]()

    def kill(self, actor: Any) -> None:
        self.dead.add(actor.actor)


@given(data=st.data(), count=st.integers(0, 40), workers=st.integers(1, 3), ahead=st.integers(1, 6))
def test_the_predictions_are_in_order_whichever_workers_die(
    data: st.DataObject, count: int, workers: int, ahead: int
) -> None:
    fake = FakeRay(lambda most: data.draw(st.integers(0, most)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "IMAGES", 4)
        patch.setattr(process, "limit_cores", lambda _count: None)
        items = [InputItem(str(number), partial(str(number).encode)) for number in range(count)]
        pool = ray_engine._Pool(fake, 1, (pickle.dumps(echo), LIMITS), workers, None)
        results = list(ray_engine._exchange(pool, ray_engine._cut_batches(items, 2), ahead))
        assert [(result.path, result.error) for result in results] == [(str(n), f"{n}") for n in range(count)]
        pool.close()
        assert len(fake.dead) == fake.started


def echo(items: Iterable[InputItem]) -> Iterator[Prediction]:
    """Predict nothing: an error that tells the content."""
    for item in items:
        yield Prediction(item.path, error=bytes(item.read()).decode())


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


class AtFirstPart(Callback):
    """Calls a function once, when the first part is there."""

    def __init__(self, folder: Path, function: Callable[[], None]) -> None:
        self.folder, self.function, self.calls = folder, function, 0

    def on_progress(self, task: str, done: int, total: int) -> None:
        if not self.calls and any(self.folder.glob("part-*")):
            self.calls = done
            self.function()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> sl.Classifier:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    bundle.write(small_bundles.make_bundle(3), path)
    return sl.load(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images that take some milliseconds each to decode; hard links to a few."""
    folder = draw_classes(tmp_path_factory.mktemp("photos"), COLORS, 4, size=500)
    files = sorted(folder.rglob("*.png"))
    for number in range(1200):
        os.link(files[number % len(files)], folder / f"{number:05}.png")
    return folder


@pytest.fixture(scope="module")
def local_files(photos: Path, classifier: sl.Classifier, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that this process writes for `photos`."""
    out = tmp_path_factory.mktemp("local") / "out.parquet"
    classifier.write_predictions(photos, out, rows_per_part=128, progress=False)
    return read_files(out)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with start_bucket() as client:
        yield client


@pytest.fixture(scope="module")
def cluster(bucket: Any) -> Iterator[Any]:
    """Two nodes, whose workers find the bucket."""
    del bucket
    with start_nodes(1, 1) as nodes:
        yield nodes


class TestTwoNodes:
    pytestmark = on_ray

    @pytest.fixture
    def write(self, classifier: sl.Classifier, cluster: Any) -> Callable[..., Any]:
        def write(images: Any, out: Path | str, **options: Any) -> Any:
            return classifier.write_predictions(
                images, out, rows_per_part=128, engine="ray", ray_address=cluster.address, progress=False, **options
            )

        return write

    def test_the_files_are_those_of_this_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: sl.Classifier, write: Callable[..., Any]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        draw_classes(Path("photos"), COLORS, 100, size=16)
        Path("photos", "red", "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n, then nothing")
        with zipfile.ZipFile("more.zip", "w") as archive:
            for number in range(16):
                archive.writestr(f"{number}.png", encode_png(number))
            archive.writestr("damaged.png", encode_png(0)[:40])
        images: list[Any] = ["photos", "more.zip", "missing.png", encode_png(1), "photos/blue/blue-000.png"]
        options: dict[str, Any] = {"probabilities": True, "top": 2}
        result = write(images, Path("ray.parquet"), **options)
        local = classifier.write_predictions(images, "local.parquet", rows_per_part=128, progress=False, **options)
        assert (result.images, result.failed, result.is_complete) == (local.images, local.failed, True)
        assert local.failed == 3
        assert read_files(Path("ray.parquet")) == read_files(Path("local.parquet"))

    def test_workers_read_a_bucket_of_s3_themselves(
        self, tmp_path: Path, bucket: Any, classifier: sl.Classifier, write: Callable[..., Any]
    ) -> None:
        folder = draw_classes(tmp_path / "photos", COLORS, 100, size=16)
        bucket.put(f"{folder}/", "bucket/photos/", recursive=True)
        bucket.pipe_file("bucket/photos/red/bad.png", b"\x89PNG\r\n\x1a\n, then nothing")
        archived = {"Bucket": "bucket", "Key": "photos/red/archived.png", "Body": encode_png(0)}
        bucket.call_s3("put_object", **archived, StorageClass="GLACIER")
        images = ["s3://bucket/photos", "s3://bucket/photos/missing.png"]
        sent = [ray_engine._SentItem.from_item(item) for item in make_items(images)]
        assert {item.content for item in sent} == {None}, "addresses are sent, not what they hold"
        options: dict[str, Any] = {"rows_per_part": 128, "probabilities": True, "progress": False}
        local = classifier.write_predictions(images, "s3://bucket/local.parquet", **options)
        result = write(images, "s3://bucket/ray.parquet", probabilities=True)
        assert (result.images, result.failed) == (local.images, local.failed) == (303, 3)
        files, expected = (
            {
                path.rpartition("/")[2]: bucket.cat_file(path)
                for path in bucket.ls(f"bucket/{name}.parquet", detail=False)
            }
            for name in ("ray", "local")
        )
        assert len(files) > 2
        assert files == expected

    def test_either_engine_goes_on_with_what_the_other_wrote(
        self, tmp_path: Path, classifier: sl.Classifier, write: Callable[..., Any]
    ) -> None:
        images = draw_classes(tmp_path / "photos", COLORS, 200, size=16)
        classifier.write_predictions(images, tmp_path / "whole.parquet", rows_per_part=128, progress=False)
        out = tmp_path / "out.parquet"
        classifier.write_predictions(images, out, rows_per_part=128, shard="1/2", progress=False)
        assert len(list(out.glob("part-*"))) == 2
        assert write(images, out).is_complete
        assert read_files(out) == read_files(tmp_path / "whole.parquet")
        (out / "part-00000002.parquet").unlink()
        before = (out / "part-00000001.parquet").stat().st_mtime_ns
        assert write(images, out, shard="0/2").is_complete
        assert read_files(out) == read_files(tmp_path / "whole.parquet")
        assert (out / "part-00000001.parquet").stat().st_mtime_ns == before
        (images / "blue" / "blue-000.png").unlink()
        with pytest.raises(DataError, match="the list of images has changed"):
            write(images, out)

    def test_a_busy_cluster_is_waited_for_with_a_message(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: sl.Classifier
    ) -> None:
        assert ray is not None
        monkeypatch.setattr(ray_engine, "FIRST_NOTICE_SECONDS", 0.5)
        images = draw_classes(tmp_path / "photos", COLORS, 4, size=16)
        messages: list[str] = []

        class FreesTheCluster(Callback):
            def on_message(self, text: str) -> None:
                messages.append(text)
                if len(messages) == 2:
                    ray.kill(busy)

        class Busy:
            def ping(self) -> None: ...

        with start_nodes(1) as cluster:
            ray.init(address=cluster.address, log_to_driver=False)
            try:
                busy = ray.remote(Busy).options(num_cpus=1).remote()
                ray.get(busy.ping.remote())
                result = classifier.write_predictions(
                    images, tmp_path / "out.parquet", engine="ray", callback=FreesTheCluster()
                )
            finally:
                ray.shutdown()
        assert result.is_complete
        assert messages[:2] == ["Ray: waiting for 1 free CPU, which a worker needs"] * 2

    def test_arrays_are_an_error(self, tmp_path: Path, write: Callable[..., Any]) -> None:
        with pytest.raises(UsageError, match="is an array"):
            write(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "out.parquet")
        assert list((tmp_path / "out.parquet").glob("part-*")) == []

    def test_an_interrupted_job_stops_at_once_and_goes_on(
        self, tmp_path: Path, photos: Path, local_files: dict[str, bytes], write: Callable[..., Any]
    ) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(photos, tmp_path / "out.parquet", callback=AtFirstPart(tmp_path / "out.parquet", interrupt))
        assert ray is not None
        assert not ray.is_initialized()
        assert 0 < len(list((tmp_path / "out.parquet").glob("part-*"))) < 10
        assert write(photos, tmp_path / "out.parquet").is_complete
        assert read_files(tmp_path / "out.parquet") == local_files

    def test_a_node_that_is_lost_costs_nothing(
        self, tmp_path: Path, photos: Path, local_files: dict[str, bytes], classifier: sl.Classifier
    ) -> None:
        out = tmp_path / "out.parquet"
        with start_nodes(1, 1) as cluster:
            node = next(iter(cluster.worker_nodes))
            lose_a_node = AtFirstPart(out, lambda: cluster.remove_node(node, allow_graceful=False))
            result = classifier.write_predictions(
                photos, out, rows_per_part=128, engine="ray", ray_address=cluster.address, callback=lose_a_node
            )
        assert result.is_complete
        assert 0 < lose_a_node.calls < 1000
        assert read_files(out) == local_files

    def test_a_worker_that_is_killed_costs_nothing(
        self, tmp_path: Path, photos: Path, local_files: dict[str, bytes], write: Callable[..., Any]
    ) -> None:
        out = tmp_path / "out.parquet"
        at_first_part = AtFirstPart(out, lambda: os.kill(list_workers("_Worker")[0], signal.SIGKILL))
        assert write(photos, out, callback=at_first_part).is_complete
        assert 0 < at_first_part.calls < 1000
        assert read_files(out) == local_files

    def test_a_worker_opens_the_model_once_for_the_threads_of_its_cpus(
        self, tmp_path: Path, photos: Path, classifier: sl.Classifier, cluster: Any
    ) -> None:
        sent = pickle.dumps(partial(stream.predict, classifier.predictor, top=1, batch_size=8))

        def open_model() -> Any:
            opened = pickle.loads(sent)  # noqa: S301  # nothing of this file, which workers cannot import
            predictor = opened.args[0]
            threads = predictor._session._alone.get_session_options().intra_op_num_threads
            with (tmp_path / str(os.getpid())).open("a") as file:
                file.write(f"{process.count_cores()} cores, {threads} threads, {predictor.streams.count} streams\n")
            return opened

        items, model = make_items(sorted(photos.glob("*.png"))), cast("Predict", Opens(open_model))
        with ray_cluster.connect(cluster.address) as connected:
            predictions = list(ray_engine.predict(connected, items, model, batch_size=8))
        assert len(predictions) == 1200  # ten batches of 128, for two workers
        opened = [file.read_text() for file in tmp_path.iterdir() if file.name.isdecimal()]
        assert len(opened) in {1, 2}
        assert set(opened) == {"1 cores, 1 threads, 1 streams\n"}

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (DiesAsItStarts(), r"workers have ended 4 times, .*; the last: The actor died"),
            (FailsToStart(), r"ValueError: invalid literal .* 'no model'"),
        ],
    )
    def test_a_worker_that_never_starts_is_an_error(
        self, cluster: Any, model: Any, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_engine, "MAX_DEATHS", 1)
        with (
            ray_cluster.connect(cluster.address) as connected,
            pytest.raises(HostError, match=rf"Ray has failed \(.*{message}.*\): run the same command again"),
        ):
            list(ray_engine.predict(connected, make_items([encode_png(0)]), model, batch_size=8))

    def test_the_command_line_takes_the_address_of_the_cluster(
        self, tmp_path: Path, classifier: sl.Classifier, cluster: Any
    ) -> None:
        """An address that is stated is used in place of the variable's, where nothing listens."""
        images, out = draw_classes(tmp_path / "photos", COLORS, 4), tmp_path / "out.parquet"
        command = [*SIGHTLINE, "predict", str(classifier.path), str(images), "--out", str(out), "--engine", "ray"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}
        options["env"] = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
        refused = subprocess.run(command, check=False, **options)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: There is no Ray cluster at 127.0.0.1:1 (Connection refused)")
        completed = subprocess.run([*command, "--ray-address", cluster.address], check=False, **options)
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", f"12 images: {out}\n")
        classifier.write_predictions(images, tmp_path / "local.parquet", progress=False)
        assert read_files(out) == read_files(tmp_path / "local.parquet")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(ray is None, reason="Ray is not installed: make test-ray")
def test_the_command_line_starts_ray_and_prints_the_result_alone(tmp_path: Path, classifier: sl.Classifier) -> None:
    images, out = draw_classes(tmp_path / "photos", COLORS, 4), tmp_path / "out.parquet"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [*SIGHTLINE, "predict", str(classifier.path), str(images), "--out", str(out)]
    completed = subprocess.run(
        [*command, "--engine", "ray"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert (completed.returncode, completed.stdout) == (0, "")
    assert completed.stderr == f"12 images: {out}\n"
    classifier.write_predictions(images, tmp_path / "local.parquet", progress=False)
    assert read_files(out) == read_files(tmp_path / "local.parquet")


def test_an_address_is_for_the_engine_ray(classifier: sl.Classifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`ray_address` cannot be combined with `engine` local: add `engine` ray"):
        classifier.write_predictions([], tmp_path / "out.parquet", ray_address="auto")
    with pytest.raises(UsageError, match=r"no engine 'spark'.*Valid names: local, ray"):
        classifier.write_predictions([], tmp_path / "out.parquet", engine="spark")
