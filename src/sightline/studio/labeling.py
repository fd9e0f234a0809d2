"""`Labeling`: which images to label next, and the accuracy of a head on the labels so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.callbacks import Callback, Progress
from sightline.data.targets import join_classes
from sightline.data.types import Index
from sightline.evaluation.active_learning import (
    EXCLUDED,
    MIN_AUDITED,
    UNLABELED,
    ActiveLearner,
    AuditedAccuracy,
    AuditedF1,
    draw_audit_order,
)  # fmt: skip
from sightline.evaluation.learning_curve import LabelGain
from sightline.studio.background import BackgroundTask, ProgressCallback, RepeatedTask
from sightline.studio.corrections import Corrections, Entries, check_class_name
from sightline.studio.pages import Pages, StrictJSONResponse, read_json, translate_state

BATCH = 12  # new labels before the head is trained again
QUEUED = 2 * BATCH  # images queued for labeling, so that nobody waits for the head
MORE = 100  # predict the gain from this number of additional labels
RESERVED, RESERVED_S = 8, 30.0  # images reserved for one page, and seconds since its request until they are released
CLOSED = 1000  # closed visits of pages that are remembered, since a request of one may arrive late

ComputeFeatures = Callable[[Index, Callback], tuple[NDArray[np.float32], NDArray[np.bool_]]]


class Labeling:
    """The images of an index without a label, each content once; methods may be called from any thread.

    Labels, dropped images and undone changes are read from the corrections alone, so they survive a restart and include
    work on other pages. Where images may have several labels, an image without any counts as labeled once somebody has
    confirmed that it has none of the classes, with a line that keeps it.

    Attributes:
        several: Whether images may have several labels.
        command: The command that trains on the labels; "" if there is none.
    """

    def __init__(
        self, index: Index, corrections: Corrections, compute: ComputeFeatures, classes: Sequence[str] = (),
        command: str = "",
    ) -> None:  # fmt: skip
        """`compute` returns the features of an index, float32 [N, D], as `project_features` does.

        It also returns which images could be decoded, bool [N]; the features of the others are not used.
        """
        self._index, self._corrections, self._compute, self.command = index, corrections, compute, command
        self.several = index.targets.allows_several
        self._lock = RLock()
        positions: dict[str, list[int]] = {}
        for i, image in enumerate(index.images):
            positions.setdefault(image.sha256, []).append(i)
        self._copies = list(positions.values())
        self._number_of_sha256 = {sha256: number for number, sha256 in enumerate(positions)}
        self._number_of = {i: number for number, copies in enumerate(self._copies) for i in copies}
        unlabeled = [n for n, copies in enumerate(self._copies) if not any(index.images[i].label for i in copies)]
        order = draw_audit_order([index.images[self._copies[n][0]].sha256 for n in unlabeled])
        self._audit_order = np.array(unlabeled, np.int64)[order]
        labels = [str(e["relabel"].to) for i in range(len(index.images)) if "relabel" in (e := corrections.get(i))]
        labels += [image.label for image in index.images]
        known = {name for label in labels for name in index.targets.list_classes(label)} - {""}
        self._classes = list(dict.fromkeys([*classes, *index.sort_classes(known)]))
        self._sets: dict[str, int] = {}  # the number of each set of classes, used as an image's label
        self._labels = np.full(len(self._copies), UNLABELED)
        self._trained = self._labels  # labels that the head was trained on
        self._is_decoded = np.ones(len(self._copies), bool)
        self._revision = 0
        self._learner: ActiveLearner | None = None
        self._queue: list[int] = []
        self._accuracy: AuditedAccuracy | AuditedF1 | None = None
        self._gain: LabelGain | None = None
        self._reserved: dict[int, tuple[str, float]] = {}
        self._closed = deque[str](maxlen=CLOSED)  # visits
        self.features = BackgroundTask("features", self._prepare)
        self.training = RepeatedTask("head", self._train)
        self.forecast = RepeatedTask("gain", self._predict_gain)
        for number in range(len(self._copies)):
            self._read_label(number)

    def start(self) -> None:
        """Compute the features, unless every image had a label from the start, so that nothing is left to label."""
        if len(self._audit_order):
            self.features.start()

    def stop(self) -> None:
        """Cancel the running tasks, and wait until they have ended."""
        for task in (self.features, self.training, self.forecast):
            task.stop()

    def add_class(self, name: str) -> None:
        """Add a class to choose from; raise `UsageError` for an invalid class name."""
        check_class_name(name)
        with self._lock:
            self._update()
            if name not in self._classes:
                self._classes.append(name)

    def describe(self, page: str = "", current_image: str = "", visit: str = "") -> dict[str, Any]:
        """Return everything that a page shows, as JSON values; images sent to a named `page` are reserved for it.

        `current_image` is the SHA-256 of the image on the page, which stays reserved until somebody has labeled it.
        Nothing is reserved for a closed `visit` of the page, whose last request may arrive late.
        """
        with self._lock:
            self._update()
            number = self._number_of_sha256.get(current_image)
            remains = number is not None and bool(self._labels[number] == UNLABELED)
            is_open = bool(page) and visit not in self._closed
            if number is not None and remains and is_open:
                self._reserved[number] = (page, time.monotonic())
            queue = [n for n in self._queue if self._labels[n] == UNLABELED]
            changed = int((self._labels != self._trained).sum())
            if self._learner is not None and (changed >= BATCH or (changed and not queue)):
                self.training.start()
            accuracy, gain = self._accuracy, self._gain
            return {
                "features": self.features.state,
                "classes": list(self._classes),
                "labeled": int((self._labels >= 0).sum()),
                "remaining": int((self._labels == UNLABELED).sum()),
                "shown": remains,
                "earlier": self._corrections.has_earlier,
                "queue": [self._describe_image(n) for n in (self._reserve(queue, page) if is_open else queue)],
                "audited": 0 if accuracy is None else accuracy.count,
                "needed": MIN_AUDITED,
                "accuracy": None if accuracy is None else {
                    "value": accuracy.value, "interval": accuracy.interval, "whenever": accuracy.anytime_interval,
                },
                "computing": self._list_computed(),
                "more": MORE,
                "gain": None if gain is None else {"value": gain.gain, "interval": gain.interval},
            }  # fmt: skip

    def _list_computed(self) -> list[str]:
        """Return which of ``accuracy`` and ``gain`` are still being computed."""
        if int((self._labels[self._audit_order] >= 0).sum()) < MIN_AUDITED:
            return []
        trains = self.features.state["status"] == "running" or self.training.is_running
        names = ["accuracy"] if trains and self._accuracy is None else []
        return [*names, *(["gain"] if (trains or self.forecast.is_running) and self._gain is None else [])]

    def _reserve(self, queue: list[int], page: str) -> list[int]:
        """Return queued images for a page: if possible, ones that no other page has requested lately."""
        now = time.monotonic()
        others = {n for n, (name, at) in self._reserved.items() if name != page and now - at < RESERVED_S}
        own = [n for n in queue if n not in others][:RESERVED]
        self._reserved |= dict.fromkeys(own, (page, now))
        return own or queue

    def release(self, page: str, visit: str = "") -> None:
        """Release the images reserved for a page, because this visit was closed."""
        with self._lock:
            if visit:
                self._closed.append(visit)
            self._reserved = {n: reserved for n, reserved in self._reserved.items() if reserved[0] != page}

    def _describe_image(self, number: int) -> dict[str, Any]:
        copies = self._copies[number]
        image = self._index.images[copies[0]]
        return {"ids": copies, "sha256": image.sha256, "path": image.path}

    def _update(self) -> None:
        """Read new corrections, and queue images while there is no head."""
        revision, changed = self._corrections.read_changes(self._revision)
        self._revision = revision
        for number in {self._number_of[i] for i in changed}:
            self._read_label(number)
        if self._learner is None:
            audit = self._audit_order[self._labels[self._audit_order] == UNLABELED]
            rest = np.flatnonzero(self._labels == UNLABELED)
            self._queue = [int(n) for n in (audit if len(audit) else rest)[:QUEUED]]

    def _read_label(self, number: int) -> None:
        """Read the label of an image: the label of its first copy that has one and is not dropped."""
        remaining = [(i, entries) for i in self._copies[number] if "drop" not in (entries := self._corrections.get(i))]
        texts = [self._find_label(i, entries) for i, entries in remaining]
        text = next((text for text in texts if text is not None), None)
        label = UNLABELED if text is None else self._number_label(text)
        self._labels[number] = label if remaining and self._is_decoded[number] else EXCLUDED

    def _find_label(self, position: int, entries: Entries) -> str | None:
        """Return the label of an image; None if it has none yet."""
        text = str(entries["relabel"].to) if "relabel" in entries else self._index.images[position].label
        is_none = self.several and bool({"relabel", "keep"} & set(entries))
        return text if text or is_none else None

    def _number_label(self, text: str) -> int:
        """Return the position of a class, or the number of a set of classes; new classes are added."""
        names = self._index.targets.list_classes(text)
        self._classes += [name for name in names if name not in self._classes]
        if not self.several:
            return self._classes.index(text)
        return self._sets.setdefault(join_classes(names), len(self._sets))

    def _list_sets(self) -> NDArray[np.uint8] | None:
        """Return the sets of classes for `ActiveLearner`; None if each image has one class."""
        targets = self._index.targets
        return targets.encode(list(self._sets), self._classes) if self.several else None

    def _prepare(self, progress: Progress) -> None:
        """Compute the features, and train the first head."""
        features, decoded = self._compute(self._index, ProgressCallback(progress))
        first = np.array([copies[0] for copies in self._copies])
        has_copies = not np.array_equal(first, np.arange(len(features)))
        progress("choosing", 0, 0)
        learner = ActiveLearner(features[first] if has_copies else features, self._audit_order)
        with self._lock:
            self._is_decoded = decoded[first]
            for number in np.flatnonzero(~self._is_decoded):
                self._read_label(int(number))
            self._learner = learner
        self._train()

    def _train(self) -> None:
        """Train the head on the labels, measure it, and choose the images to label next."""
        with self._lock:
            assert self._learner is not None, "it is there once the features are"
            learner, labels, num_classes = self._learner, self._labels.copy(), len(self._classes)
            sets = self._list_sets()
        learner.refit(labels, num_classes, sets)
        queue = learner.choose_next(labels, QUEUED)
        with self._lock:
            self._queue, self._trained, self._accuracy = queue, labels, learner.accuracy
        self.forecast.start()

    def _predict_gain(self) -> None:
        with self._lock:
            assert self._learner is not None, "it is there once the features are"
            learner, labels, num_classes = self._learner, self._trained.copy(), len(self._classes)
            sets = self._list_sets()
        self._gain = learner.predict_gain(labels, num_classes, MORE, sets)


def make_routes(labeling: Labeling, name: str, pages: Pages, patch: str) -> list[Route]:
    """Return the routes of the labeling page.

    ``GET /label`` is the page, ``GET /label/state`` returns its content, ``POST /label/start`` computes the features,
    ``POST /label/classes`` adds a class, and ``POST /label/leave`` reports that a page was closed. Labels themselves
    are sent as corrections.
    """

    def page(request: Request) -> Response:
        command, several = labeling.command, labeling.several
        return pages.render(request, "label.html.j2", name=name, patch=patch, command=command, several=several)

    def describe(request: Request) -> StrictJSONResponse:
        query = request.query_params
        state = labeling.describe(query.get("page", "")[:64], query.get("shown", ""), query.get("visit", "")[:64])
        return StrictJSONResponse(state | {"features": translate_state(request, state["features"])})

    def start(request: Request) -> StrictJSONResponse:
        labeling.start()
        return describe(request)

    def leave(request: Request) -> StrictJSONResponse:
        query = request.query_params
        labeling.release(query.get("page", "")[:64], query.get("visit", "")[:64])
        return StrictJSONResponse({})

    async def add_class(request: Request) -> StrictJSONResponse:
        class_name = (await read_json(request)).get("name")
        if not isinstance(class_name, str):
            raise HTTPException(400, "Expected the key name.")
        await run_in_threadpool(labeling.add_class, class_name)
        return await run_in_threadpool(describe, request)

    return [
        Route("/label", page),
        Route("/label/state", describe),
        Route("/label/start", start, methods=["POST"]),
        Route("/label/classes", add_class, methods=["POST"]),
        Route("/label/leave", leave, methods=["POST"]),
    ]
