"""Labeled images for evaluation: the run's own or others, indexed once and decoded per split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from sightline.callbacks import Progress, no_progress
from sightline.data.checks.leakage import leaked_contents
from sightline.data.class_tree import build_tree
from sightline.data.dataset import decode_images, encode_labels, list_sizes
from sightline.data.indexing import Sources, build_index, describe_sources
from sightline.data.masks import check_masks
from sightline.data.recorded_images import MatchedImages, map_groups
from sightline.data.sources.class_name_files import are_numbers
from sightline.data.targets import CLASS_TARGETS, Targets, strip_zeros
from sightline.data.types import Index, LabeledSubset, Split, Subset
from sightline.errors import DataError, list_some
from sightline.escaping import quote_path
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory


@dataclass(frozen=True)
class LabeledImages:
    """The run's own images, if `sources` is None, or those of `sources`.

    They are indexed, which reads every file, once, when the first split is requested. `source_run` is the run that the
    model came from, which may be known for a model that is loaded without its `run`. `index` has the run's images,
    with its corrections applied, if they are already indexed.
    """

    run: RunDirectory | None
    source_run: RunDirectory | None
    classes: tuple[str, ...]
    preprocess: PreprocessingSpec
    sources: Sources | None = None
    progress: Progress = no_progress
    index: Index | None = None
    targets: Targets = CLASS_TARGETS

    def load(
        self,
        split: Split | None = None,
        *,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        alternative: str = "",
    ) -> LabeledSubset:
        """Return the labeled images of a split; see `Classifier.evaluate`.

        `alternative` ends the message about missing images of the run with an alternative to restoring them; "" uses
        the alternative for an evaluation.
        """
        if self.sources is None:
            return self._load_own(split, cache=cache, allow_missing=allow_missing, alternative=alternative)
        labeled = self._load_others(split, cache=cache)
        return run_images.exclude_known(
            labeled, self._known_images, describe_sources(self.sources), include_known=include_training
        )

    @property
    def is_own(self) -> bool:
        """Whether these are the run's own images."""
        return self.sources is None

    @cached_property
    def _matched(self) -> MatchedImages:
        if self.run is None:
            raise DataError("A model without its run has no images of its own: give images to evaluate on.")
        return run_images.match_run_images(self.run, self.progress, self.index)

    @cached_property
    def _index(self) -> Index:
        options = run_images.choose_tree_options(self.source_run, self.targets)
        if are_numbers(self.classes):  # a file beside the images may map these numbers to names
            options = replace(options, class_order=self.classes)
        return build_index(self.sources or [], self.progress, options=options, targets=self.targets)

    @cached_property
    def _known_images(self) -> run_images.KnownImages | None:
        return run_images.load_known_images(self.source_run)

    def _load_own(self, split: Split | None, *, cache: bool, allow_missing: bool, alternative: str) -> LabeledSubset:
        matched, run = self._matched, self.run
        assert run is not None
        splits = {row.split for row in (*matched.rows, *matched.missing, *matched.changed)}
        wanted_split = split or ("test" if "test" in splits else "validation")
        matched_split = matched.select_split(wanted_split)
        if not matched_split.rows:
            run_images.raise_if_incomplete(
                run, matched_split, f"{wanted_split} images", f", {alternative or 'or give images to evaluate on'}"
            )
        elif not allow_missing:
            advice = f"; `sightline evaluate {quote_path(run.path)} --allow-missing` evaluates the rest"
            run_images.raise_if_incomplete(
                run, matched_split, f"{wanted_split} images", f", {alternative}" if alternative else advice
            )
        labeled = self._load_split(matched_split.index, wanted_split, cache=cache)
        leaked = leaked_contents(run.read_leaks(), wanted_split)
        return replace(
            labeled,
            # The run's unreadable files are listed for each of its splits, since the split of such a file is unknown.
            unreadable=tuple({file.path: file for file in (*run.read_unreadable(), *labeled.unreadable)}.values()),
            split=wanted_split,
            missing=run_images.summarize_missing(matched_split),
            leaked=leaked,
            added=len(matched.added),
            groups=map_groups(matched_split.rows),
        )

    def _load_others(self, split: Split | None, *, cache: bool) -> LabeledSubset:
        splits = {p.split for p in self._index.images}
        wanted_split = split or ("test" if "test" in splits else None)
        if wanted_split is None and splits != {None}:
            raise DataError(f"{self._index.name} has no test split: choose one of its splits with --split.")
        return self._load_split(self._index, wanted_split, cache=cache)

    def _load_split(self, index: Index, wanted_split: Split | None, *, cache: bool) -> LabeledSubset:
        parents = build_tree(self.classes).parent_nodes if self.targets.are_paths else ()
        indices = [
            i for i, p in enumerate(index.images)
            if (wanted_split is None or p.split == wanted_split) and p.label not in parents
        ]  # fmt: skip
        if not indices:
            raise DataError(
                f"{index.name} has no images in its {wanted_split} split: give other images, or "
                "another split with --split."
            )
        return decode_labeled(
            index.select(indices), self.classes, self.preprocess, self.targets, cache=cache, progress=self.progress
        )


def decode_labeled(
    index: Index,
    classes: tuple[str, ...],
    preprocess: PreprocessingSpec,
    targets: Targets,
    *,
    cache: bool = True,
    progress: Progress,
) -> LabeledSubset:
    """Return all images of `index` with their labels; raises `DataError` for a label that is not in `classes`.

    A number names the class of this number, even if the class name has leading zeros, as a folder's may.
    """
    if targets.are_masks:
        check_masks(index)
    index = _write_numbers_as_in(classes, index)
    for image in index.images:
        for label in set(targets.list_classes(image.label)).difference(classes):
            raise DataError(
                f"{image.path} has the class {label!r}, which the model does not know: "
                f"its classes are {list_some(classes, 8)}."
            )
    decoded = decode_images(index, preprocess, keep=cache, progress=progress)
    images = tuple(index.images[i] for i in decoded.readable)
    samples = Subset(
        decoded.pixels.array,
        decoded.rows,
        encode_labels(index, decoded.readable, preprocess, targets, classes),
        tuple(p.path for p in images),
        list_sizes(images),
    )
    return LabeledSubset(samples, images, (*index.unreadable, *decoded.unreadable))


def _write_numbers_as_in(classes: tuple[str, ...], index: Index) -> Index:
    names = {strip_zeros(name): name for name in classes}
    is_known = {image.label for image in index.images} <= {*classes}
    if is_known or index.mask_classes is not None or len(names) < len(classes):  # classes include both 3 and 03
        return index
    images = (replace(image, label=names.get(strip_zeros(image.label), image.label)) for image in index.images)
    return replace(index, images=tuple(images))
