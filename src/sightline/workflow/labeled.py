"""Labeled images for evaluation: the run's own or others, indexed once and decoded per split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sightline.data.dataset import decode
from sightline.data.index import Sources, name_sources
from sightline.data.index import index as make_index
from sightline.data.leakage import leaked_contents
from sightline.data.membership import Matched
from sightline.errors import DataError
from sightline.preprocess import Preprocess
from sightline.records import Index, Labelled, Part, Progress, Samples, no_progress
from sightline.run import Run
from sightline.workflow import images


@dataclass(frozen=True)
class LabeledImages:
    """The run's own images, if `sources` is None, or those of `sources`.

    They are indexed, which reads every file, once, when the first split is requested. `home` is the run that the model
    came from, which may be known for a model that is loaded without its `run`. `index` holds the run's images, with
    its corrections applied, if they are already indexed.
    """

    run: Run | None
    home: Run | None
    classes: tuple[str, ...]
    preprocess: Preprocess
    sources: Sources | None = None
    progress: Progress = no_progress
    index: Index | None = None

    def labelled(
        self,
        split: Part | None = None,
        *,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        otherwise: str = "",
    ) -> Labelled:
        """Return the labeled images of a split; see `Classifier.evaluate`.

        `otherwise` ends the message about missing images of the run with an alternative to restoring them; "": that for
        an evaluation.
        """
        if self.sources is None:
            return self._own(split, cache=cache, allow_missing=allow_missing, otherwise=otherwise)
        found = self._others(split, cache=cache)
        return images.set_apart(found, self._known, name_sources(self.sources), include=include_training)

    @property
    def own(self) -> bool:
        """Whether these are the run's own images."""
        return self.sources is None

    @cached_property
    def _matched(self) -> Matched:
        if self.run is None:
            raise DataError("This model does not know its training images: give images to evaluate on.")
        return images.find(self.run, self.progress, self.index)

    @cached_property
    def _index(self) -> Index:
        return make_index(self.sources or [], self.progress)

    @cached_property
    def _known(self) -> images.Known | None:
        return images.known(self.home)

    def _own(self, split: Part | None, *, cache: bool, allow_missing: bool, otherwise: str) -> Labelled:
        matched, run = self._matched, self.run
        assert run is not None
        splits = {row.split for row in (*matched.rows, *matched.missing, *matched.changed)}
        wanted = split or ("test" if "test" in splits else "validation")
        own = matched.only(wanted)
        if not own.rows:
            images.check_complete(run, own, f"{wanted} images", f", {otherwise or 'or give images to evaluate on'}")
        elif not allow_missing:
            others = f"; `sightline evaluate {run.path} --allow-missing` evaluates the rest"
            images.check_complete(run, own, f"{wanted} images", f", {otherwise}" if otherwise else others)
        found = self._samples(own.index, wanted, cache=cache)
        leaked = leaked_contents(run.read_leaks(), wanted)
        return replace(found, split=wanted, missing=images.missing(own), leaked=leaked, added=len(matched.added))

    def _others(self, split: Part | None, *, cache: bool) -> Labelled:
        parts = {p.part for p in self._index.pictures}
        wanted = split or ("test" if "test" in parts else None)
        if wanted is None and parts != {None}:
            raise DataError(f"{self._index.name} has no test split: choose one of its splits with --split.")
        return self._samples(self._index, wanted, cache=cache)

    def _samples(self, index: Index, wanted: Part | None, *, cache: bool) -> Labelled:
        keep = [i for i, p in enumerate(index.pictures) if wanted is None or p.part == wanted]
        if not keep:
            raise DataError(
                f"{index.name} has no images in its {wanted} split: give other images, or another split with --split."
            )
        chosen = index.at(keep)
        number = {label: i for i, label in enumerate(self.classes)}
        for picture in chosen.pictures:
            if picture.label not in number:
                raise DataError(
                    f"{picture.path} has the class {picture.label!r}, which the model does not know: "
                    f"its classes are {', '.join(self.classes[:8])}."
                )
        decoded = decode(chosen, self.preprocess, keep=cache, progress=self.progress)
        pictures = tuple(chosen.pictures[i] for i in decoded.readable)
        samples = Samples(
            decoded.pixels.array,
            decoded.rows,
            np.array([number[p.label] for p in pictures], np.int32),
            tuple(p.path for p in pictures),
        )
        return Labelled(samples, pictures, (*index.rejects, *decoded.rejects))
