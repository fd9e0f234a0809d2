"""`train`: from labeled images to a complete run directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import backend, files
from sightline.config import RunConfig
from sightline.data import leakage
from sightline.data.dataset import Dataset, assemble
from sightline.data.finding import Finding
from sightline.data.index import Sources
from sightline.errors import DivergedError, Interrupted, plural
from sightline.evaluation.judgement import Judgement, Said, Wanted
from sightline.hosts import Hosts
from sightline.models.build import Plan
from sightline.models.describe import parameters, weights_sha256
from sightline.prediction.keras import KerasPredictor
from sightline.preprocess import Preprocess
from sightline.records import (
    PARTS,
    EpochRecord,
    Evaluation,
    Index,
    Labelled,
    Part,
    PartFigures,
    TrainingMetrics,
    TrainResult,
)
from sightline.report import figures, judgement, summary
from sightline.report import judged as drawings
from sightline.run import Run, check_writable, next_path
from sightline.training import devices, interrupt
from sightline.training.fit import Fitted, fit
from sightline.training.log import Events
from sightline.training.state import latest, records
from sightline.watch import Tee, Watcher
from sightline.workflow import (
    again,
    check,
    choose,
    environment,
    extension,
    judging,
    networks,
    reporting,
    ship,
    together,
)
from sightline.workflow.ending import leave, marked
from sightline.workflow.request import Request, decided, settle, start_weights
from sightline.workflow.together import Meeting


def train(  # noqa: PLR0913  # keyword arguments, each the option of the command
    sources: Sources,
    *,
    recipe: str = "auto",
    config: Path | str | None = None,
    set: Sequence[str] = (),  # noqa: A002  # the option's own name
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    force: bool = False,
    hosts: Hosts | None = None,
    watcher: Watcher | None = None,
) -> TrainResult:
    """Train a classifier on labeled images and write a complete run directory.

    `sources`: see `sightline.data.index.index`. `recipe` is the name of a recipe, `config` a TOML file that overrides
    it, and `set` a list of ``KEY=VALUE`` assignments that override both, and also `epochs` (total; the stages of a
    recipe are scaled to it), `batch_size` and `seed`, which are shortcuts. `out` is the run directory, by default
    ``runs/<recipe>-<data>-<n>``. It must not exist or be a run: with `force` that run is replaced, else it must be
    complete with the same settings, and is only evaluated again. `hosts`: the processes that train together, each of
    which calls this with the same arguments; only host 0 writes, and the results of the others have training metrics
    only.

    Raises `SightlineError`s; if raised before the first step, nothing is left behind.
    """
    started = time.perf_counter()
    watcher = watcher or Watcher()
    named = {"train.epochs": epochs, "train.batch_size": batch_size, "seed": seed}
    assignments = [*(f"{key}={value}" for key, value in named.items() if value is not None), *set]
    request = together.on_jax(Request.of(sources, recipe, config, assignments), hosts)
    given = request.settings()  # fail on invalid settings before reading any image
    backend.keep_freed_memory(given.device.backend)  # before the first thread
    place = Path(out) if out is not None else None
    with interrupt.at_once(), together.meeting(hosts, given.device, watcher) as meeting:
        if meeting.team.rank:
            return together.follow(meeting, sources, started)
        if place is not None and again.is_run(place) and not force:
            with Run.open(place).held():
                settings, index, _ = settle(sources, request, watcher)
                return again.tested(place, settings, index, watcher)
        if place is not None:
            check_writable(place, force=force)
        settled = None
        if place is None or again.is_run(place):  # an existing run is removed only once the new one can start
            settled = settle(sources, request, watcher)
            start_weights(settled[0])
            stem = f"{settled[0].recipe}-{files.stem(settled[1].name)}"
            place = place or next_path(Path("runs"), stem)
        run = Run.create(place, force=force, request=request.to_dict())
        with run.held(), marked(run, new=True):
            return Training(*(settled or settle(sources, request, watcher)), run, watcher, started, meeting).go()


@dataclass(frozen=True, slots=True)
class _Shipped:
    """The final model, its evaluations by split, and the report on the `last` split, whose images are `labelled`.

    `refusal` says why there is no bundle; None if there is one.
    """

    model: Any
    found: Mapping[Part, Evaluation]
    last: Judgement | None
    labelled: Labelled
    refusal: str | None
    temperature: float


@dataclass(frozen=True, slots=True)
class Training:
    """A training in progress: its resolved settings, its images, and its run directory, locked by this process.

    `findings` are those of the images; they are recorded along with the settings.
    """

    config: RunConfig
    index: Index
    findings: tuple[Finding, ...]
    run: Run
    watcher: Watcher
    started: float
    meeting: Meeting = field(default_factory=Meeting)

    def go(self) -> TrainResult:
        """Decode, build, train (from the last checkpoint if there is one), evaluate."""
        watcher, run, start = self.watcher, self.run, start_weights(self.config)
        config = self.config
        if not run.has_config:
            config = choose.with_range(decided(config, start, self.meeting.team.count), self.index, watcher)
            config = networks.precise(config, self.index, watcher)
            run.update(
                command=sys.argv,
                seed=config.seed,
                findings=reporting.findings(self.findings),
                **environment.environment(),
            )
            run.write_patch(config.data.patch)
            run.write_config(config)
        together.check(self.meeting.team, config)
        self.meeting.send_settings(config, run.info["request"], run.patch)
        preprocess = choose.preprocess(config)
        data = assemble(
            self.index, preprocess, config.split, config.seed,
            keep=config.data.cache, progress=watcher.progress, threads=config.device.threads or None,
        )  # fmt: skip
        again.check_pictures(run, data)
        small = leakage.small_images(data.pixels, data.rows, [p.sha256 for p in data.pictures], config.device.threads)
        leaks = leakage.find_leaks(data, None if small is None else small.groups())
        for note in [*_data_notes(data), *check.leakage(leaks, data, config)]:
            watcher.say(note)
        with interrupt.leaving(lambda: leave(run)):
            plan = networks.plan(config, data, start)
            run.write_data(data)
            run.write_leakage(leaks, small and small.only(leakage.held(data)))
            return replace(self, config=config)._in_run(run, data, plan, preprocess)  # noqa: SLF001  # itself

    def _in_run(self, run: Run, data: Dataset, plan: Plan, preprocess: Preprocess) -> TrainResult:
        config, watcher = self.config, self.watcher
        saved = extension.reopened(latest(run.checkpoints, watcher.say), run.info)
        history = list(records(saved))
        run.write_history(history)
        if saved:
            watcher.say(
                f"resuming after {plural(len(history), 'epoch')} and {plural(saved.state['step'], 'step')} of the next"
            )
        files.refuse_links(run.path, run.path / "tensorboard")
        events = Events(run.path / "tensorboard") if config.train.tensorboard else None

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            run.write_history(history)
            if events:
                events.write(record)

        self.meeting.compare(data, plan.weights)
        saved = self.meeting.share(saved)
        spread = devices.spread(config.device)
        with spread.scope():
            network = networks.built(plan, data)
        parts = data.part("train"), data.part("validation")
        try:
            with extension.naming(run), spread.scope(), self.meeting.apart():
                fitted = fit(network, *parts, config, Tee(watcher, on_epoch), checkpoints=run.checkpoints, saved=saved)
        except Interrupted as error:
            if history:
                run.write_model(networks.alone(network, plan, spread), data.classes, preprocess)
            raise Interrupted(
                f"{error} The last checkpoint and the best weights are saved: "
                f"`sightline resume {run.path}` continues from there."
            ) from None
        except DivergedError:
            if history:  # save the weights of the best epoch so far
                run.write_model(networks.alone(network, plan, spread), data.classes, preprocess)
            raise
        finally:
            if events:
                events.close()
        run.clear_outcome()
        found = self._ship(networks.alone(network, plan, spread), data, fitted, preprocess)
        if fitted.history:
            run.write_figure("curves", figures.curves(fitted.history, f"{config.model.name} on {data.name}"))
        result = self._result(data, fitted, found)
        trained = KerasPredictor(found.model, data.classes, preprocess)
        reporting.write(run, summary.training(result), found.last, found.labelled, trained)
        run.update(status="complete", result=summary.training(result))
        extension.conclude(run, keep=config.train.keep_state, watcher=watcher)
        return result

    def _ship(self, model: Any, data: Dataset, fitted: Fitted, preprocess: Preprocess) -> _Shipped:
        """Calibrate, export, evaluate the exported file on the held-out splits, and write the bundle.

        If the outputs of the file differ from the model's, it is not written, and the model itself is evaluated.
        """
        config, watcher, run = self.config, self.watcher, self.run
        logits = ship.logits_of(model, data, fitted.validation_logits, config.train.precision)
        temperature = None
        if config.bundle.calibrate:
            temperature = ship.calibrate(model, logits, data.part("validation").labels)
        value = temperature.value if temperature else 1.0
        run.write_model(model, data.classes, preprocess)
        graph, predictor = ship.export(model, data.classes, preprocess, config.device.threads)
        heard = ship.hear(predictor, data, watcher.progress)
        agreement = ship.compare(model, predictor, data, logits / np.float32(value), heard)
        refusal = ship.refusal(agreement)
        if refusal is not None:
            run.update(no_bundle=refusal)
            watcher.say(f"No bundle is written: {refusal}.")
            heard = ship.hear(KerasPredictor(model, data.classes, preprocess), data, watcher.progress)
        judged = {part: self._judge(part, heard, data) for part in heard}
        if refusal is None:
            run.write_bundle(
                ship.pack(
                    model, graph, predictor, data, self.index, config,
                    model=config.model.name, temperature=value, parity=agreement.to_dict(),
                    figures=ship.figures_of({part: found.evaluation for part, found in judged.items()}),
                )
            )  # fmt: skip
        last = judged.get("test") or judged.get("validation")
        labelled = self._labelled("test" if "test" in judged else "validation", data)
        if last is not None:
            run.write_figures(drawings.main(last))
        return _Shipped(
            model, {part: found.evaluation for part, found in judged.items()}, last, labelled, refusal, value
        )

    def _judge(self, part: Part, heard: Mapping[Part, Said], data: Dataset) -> Judgement:
        found = judging.judged(
            data.classes, heard[part], self._labelled(part, data), part, heard.get("validation"),
            wanted=Wanted(positive=self.config.evaluation.positive),
        )  # fmt: skip
        self.run.write_evaluation(part, found.evaluation, judgement.judgement(found))
        return found

    def _labelled(self, part: Part, data: Dataset) -> Labelled:
        return replace(data.labelled(part), leaked=leakage.leaked_contents(self.run.read_leaks(), part))

    def _result(self, data: Dataset, fitted: Fitted, shipped: _Shipped) -> TrainResult:
        best, model, found = fitted.best, shipped.model, shipped.found

        def part(name: Part) -> PartFigures | None:
            return PartFigures(found[name].accuracy, found[name].loss, found[name].count) if name in found else None

        return TrainResult(
            run=str(self.run.path),
            model=self.config.model.name,
            parameters=parameters(model),
            classes=data.classes,
            train=TrainingMetrics.of(best, data.counts()["train"]),
            validation=part("validation"),
            test=part("test"),
            epochs=len(fitted.history),
            seconds=time.perf_counter() - self.started,
            images_per_second=fitted.images_per_second,
            weights_sha256=weights_sha256(model),
            recipe=self.config.recipe,
            notes=data.notes,
            bundle=None if shipped.refusal else str(self.run.path / "bundle"),
            bundle_reason=shipped.refusal,
            details={
                "best_epoch": best.epoch if best else None,
                "temperature": shipped.temperature,
                "rejects": len(data.rejects),
                "skipped": data.skipped,
                "cache_hit": data.cache_hit,
                "leaked": {name: summary.headline(value).get("leaked") for name, value in found.items()},
                "untested_classes": {name: list(evaluation.untested) for name, evaluation in found.items()},
            },
        )


def _data_notes(data: Dataset) -> list[str]:
    counts = data.counts()
    parts = ", ".join(f"{counts[p]:,} {p}" for p in PARTS)
    notes = [f"{data.name}: {plural(len(data.classes), 'class', 'classes')}, {parts}"]
    if data.rejects:
        first = data.rejects[0]
        notes.append(
            f"{plural(len(data.rejects), 'file')} rejected, such as {first.path}: {first.reason} "
            "(all are in data.jsonl)"
        )
    if data.skipped:
        notes.append(f"{plural(data.skipped, 'file')} skipped that are not images")
    return [*notes, *data.notes]
