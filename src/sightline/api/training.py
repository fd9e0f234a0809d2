"""`train`: from labeled images to a complete run directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import _io, backend
from sightline.api import evaluation, existing_run, run_report
from sightline.callbacks import Callback, CallbackList, EpochRecord
from sightline.config import RunConfig
from sightline.data.checks import leakage
from sightline.data.checks.finding import Finding
from sightline.data.dataset import DecodedDataset, build_dataset
from sightline.data.indexing import Sources
from sightline.data.types import SPLITS, Index, LabeledSubset, Split
from sightline.distributed import devices
from sightline.distributed.cluster import ClusterSpec
from sightline.errors import DivergedError, Interrupted, plural
from sightline.evaluation.report import EvaluationReport, ModelOutputs, ThresholdRequest
from sightline.evaluation.results import EvaluationResult
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.build import ModelSpec
from sightline.models.describe import count_parameters, weights_sha256
from sightline.preprocessing import PreprocessingSpec
from sightline.report import evaluation_dict, run_plots, to_dict
from sightline.report import evaluation_plots as drawings
from sightline.runs import autoconfig, environment, extension, finalize, host_session, network_setup, preflight
from sightline.runs.directory import RunDirectory, check_writable, next_path
from sightline.runs.failures import record_failure, record_interruption
from sightline.runs.host_session import HostSession
from sightline.runs.resolve import TrainRequest, find_initial_weights, resolve_machine_settings, resolve_settings
from sightline.training import interrupt
from sightline.training.loop import FitResult, fit
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult
from sightline.training.state import load_latest, read_history
from sightline.training.tensorboard import TensorBoardWriter


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
    hosts: ClusterSpec | None = None,
    callback: Callback | None = None,
) -> TrainResult:
    """Train a classifier on labeled images and write a complete run directory.

    `sources`: see `sightline.data.indexing.index`. `recipe` is the name of a recipe, `config` a TOML file that
    overrides it, and `set` a list of ``KEY=VALUE`` assignments that override both, and also `epochs` (total; the stages
    of a recipe are scaled to it), `batch_size` and `seed`, which are shortcuts. `out` is the run directory, by default
    ``runs/<recipe>-<data>-<n>``. It must not exist or be a run: with `force` that run is replaced, else it must be
    complete with the same settings, and is only evaluated again. `hosts`: the processes that train together, each of
    which calls this with the same arguments; only host 0 writes, and the results of the others have training metrics
    only.

    Raises `SightlineError`s; if raised before the first step, nothing is left behind.
    """
    start_time = time.perf_counter()
    callback = callback or Callback()
    shortcuts = {"train.epochs": epochs, "train.batch_size": batch_size, "seed": seed}
    assignments = [*(f"{key}={value}" for key, value in shortcuts.items() if value is not None), *set]
    request = host_session.with_jax_backend(TrainRequest.create(sources, recipe, config, assignments), hosts)
    requested_config = request.settings()  # fail on invalid settings before reading any image
    backend.tune_malloc(requested_config.device.backend)  # before the first thread
    run_path = Path(out) if out is not None else None
    with interrupt.raise_on_sigterm(), host_session.open_session(hosts, requested_config.device, callback) as session:
        if session.team.rank:
            return host_session.train_follower(session, sources, start_time)
        if run_path is not None and existing_run.is_run(run_path) and not force:
            with RunDirectory.open(run_path).lock():
                settings, index, _ = resolve_settings(sources, request, callback)
                return existing_run.reevaluate(run_path, settings, index, callback)
        if run_path is not None:
            check_writable(run_path, force=force)
        resolved = None
        if run_path is None or existing_run.is_run(
            run_path
        ):  # an existing run is removed only once the new one can start
            resolved = resolve_settings(sources, request, callback)
            find_initial_weights(resolved[0])
            name_stem = f"{resolved[0].recipe}-{_io.safe_stem(resolved[1].name)}"
            run_path = run_path or next_path(Path("runs"), name_stem)
        run = RunDirectory.create(run_path, force=force, request=request.to_dict())
        with run.lock(), record_failure(run, new=True):
            return Training(
                *(resolved or resolve_settings(sources, request, callback)), run, callback, start_time, session
            ).run_pipeline()


@dataclass(frozen=True, slots=True)
class _FinalModel:
    """The final model, its evaluations by split, and the report on the `last_report` split, whose images are `labeled`.

    `no_bundle_reason` says why there is no bundle; None if there is one.
    """

    model: Any
    evaluations: Mapping[Split, EvaluationResult]
    last_report: EvaluationReport | None
    labeled: LabeledSubset
    no_bundle_reason: str | None
    temperature: float


@dataclass(frozen=True, slots=True)
class Training:
    """A training in progress: its resolved settings, its images, and its run directory, locked by this process.

    `findings` are those of the images; they are recorded along with the settings.
    """

    config: RunConfig
    index: Index
    findings: tuple[Finding, ...]
    run: RunDirectory
    callback: Callback
    start_time: float
    session: HostSession = field(default_factory=HostSession)

    def run_pipeline(self) -> TrainResult:
        """Decode, build, train (from the last checkpoint if there is one), evaluate."""
        callback, run, initial_weights = self.callback, self.run, find_initial_weights(self.config)
        config = self.config
        if not run.has_config:
            config = autoconfig.resolve_value_range(
                resolve_machine_settings(config, initial_weights, self.session.team.count), self.index, callback
            )
            config = network_setup.resolve_precision(config, self.index, callback)
            run.update(
                command=sys.argv,
                seed=config.seed,
                findings=run_report.findings_to_dicts(self.findings),
                **environment.describe_environment(),
            )
            run.write_patch(config.data.patch)
            run.write_config(config)
        host_session.check_host_count(self.session.team, config)
        self.session.send_settings(config, run.info["request"], run.patch)
        preprocess = autoconfig.build_preprocess(config)
        data = build_dataset(
            self.index, preprocess, config.split, config.seed,
            keep=config.data.cache, progress=callback.on_progress, threads=config.device.threads or None,
        )  # fmt: skip
        existing_run.check_unchanged(run, data)
        small_images = leakage.make_small_images(
            data.pixels, data.rows, [p.sha256 for p in data.images], config.device.threads
        )
        leaks = leakage.find_leaks(data, None if small_images is None else small_images.find_groups())
        for note in [*_data_notes(data), *preflight.describe_leakage(leaks, data, config)]:
            callback.on_message(note)
        with interrupt.exit_on_sigterm(lambda: record_interruption(run)):
            spec = network_setup.build_model_spec(config, data, initial_weights)
            run.write_data(data)
            run.write_leakage(leaks, small_images and small_images.select(leakage.training_contents(data)))
            return replace(self, config=config)._fit_and_finalize(run, data, spec, preprocess)  # noqa: SLF001  # itself

    def _fit_and_finalize(
        self, run: RunDirectory, data: DecodedDataset, spec: ModelSpec, preprocess: PreprocessingSpec
    ) -> TrainResult:
        config, callback = self.config, self.callback
        checkpoint = extension.reset_patience(load_latest(run.checkpoints, callback.on_message), run.info)
        history = list(read_history(checkpoint))
        run.write_history(history)
        if checkpoint:
            callback.on_message(
                f"resuming after {plural(len(history), 'epoch')} and "
                f"{plural(checkpoint.state['step'], 'step')} of the next"
            )
        _io.refuse_links(run.path, run.path / "tensorboard")
        events = TensorBoardWriter(run.path / "tensorboard") if config.train.tensorboard else None

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            run.write_history(history)
            if events:
                events.write_epoch(record)

        self.session.check_same_data(data, spec.weights)
        checkpoint = self.session.broadcast_checkpoint(checkpoint)
        distribution = devices.create_distribution(config.device)
        with distribution.scope():
            network = network_setup.build_network(spec, data)
        subsets = data.subset("train"), data.subset("validation")
        try:
            with extension.name_checkpoints_in_errors(run), distribution.scope(), self.session.disconnecting():
                fit_result = fit(
                    network,
                    *subsets,
                    config,
                    CallbackList(callback, on_epoch),
                    checkpoint_dir=run.checkpoints,
                    resume_from=checkpoint,
                )
        except Interrupted as error:
            if history:
                run.write_model(
                    network_setup.to_single_device_model(network, spec, distribution), data.classes, preprocess
                )
            raise Interrupted(
                f"{error} The last checkpoint and the best weights are saved: "
                f"`sightline resume {run.path}` continues from there."
            ) from None
        except DivergedError:
            if history:  # save the weights of the best epoch so far
                run.write_model(
                    network_setup.to_single_device_model(network, spec, distribution), data.classes, preprocess
                )
            raise
        finally:
            if events:
                events.close()
        run.clear_results()
        final_model = self._finalize(
            network_setup.to_single_device_model(network, spec, distribution), data, fit_result, preprocess
        )
        if fit_result.history:
            run.write_figure("curves", run_plots.plot_curves(fit_result.history, f"{config.model.name} on {data.name}"))
        result = self._build_result(data, fit_result, final_model)
        keras_predictor = KerasPredictor(final_model.model, data.classes, preprocess)
        run_report.write_report(
            run, to_dict.training_to_dict(result), final_model.last_report, final_model.labeled, keras_predictor
        )
        run.update(status="complete", result=to_dict.training_to_dict(result))
        extension.clean_checkpoints(run, keep=config.train.keep_last_checkpoint, callback=callback)
        return result

    def _finalize(
        self, model: Any, data: DecodedDataset, fit_result: FitResult, preprocess: PreprocessingSpec
    ) -> _FinalModel:
        """Calibrate, export, evaluate the exported file on the held-out splits, and write the bundle.

        If the outputs of the file differ from the model's, it is not written, and the model itself is evaluated.
        """
        config, callback, run = self.config, self.callback, self.run
        logits = finalize.validation_logits(model, data, fit_result.validation_logits, config.train.precision)
        temperature = None
        if config.bundle.calibrate:
            temperature = finalize.calibrate_temperature(model, logits, data.subset("validation").labels)
        temperature_value = temperature.value if temperature else 1.0
        run.write_model(model, data.classes, preprocess)
        graph, predictor = finalize.export_onnx(model, data.classes, preprocess, config.device.threads)
        outputs_by_split = finalize.collect_split_outputs(predictor, data, callback.on_progress)
        agreement = finalize.check_parity(
            model, predictor, data, logits / np.float32(temperature_value), outputs_by_split
        )
        no_bundle_reason = finalize.parity_failure(agreement)
        if no_bundle_reason is not None:
            run.update(no_bundle=no_bundle_reason)
            callback.on_message(f"No bundle is written: {no_bundle_reason}.")
            outputs_by_split = finalize.collect_split_outputs(
                KerasPredictor(model, data.classes, preprocess), data, callback.on_progress
            )
        reports = {split: self._evaluate_split(split, outputs_by_split, data) for split in outputs_by_split}
        if no_bundle_reason is None:
            run.write_bundle(
                finalize.build_bundle(
                    model, graph, predictor, data, self.index, config,
                    model=config.model.name, temperature=temperature_value, parity=agreement.to_dict(),
                    metrics=finalize.metrics_by_split({name: report.evaluation for name, report in reports.items()}),
                )
            )  # fmt: skip
        last_report = reports.get("test") or reports.get("validation")
        labeled = self._labeled_split("test" if "test" in reports else "validation", data)
        if last_report is not None:
            run.write_figures(drawings.plot_main(last_report))
        return _FinalModel(
            model,
            {name: split_report.evaluation for name, split_report in reports.items()},
            last_report,
            labeled,
            no_bundle_reason,
            temperature_value,
        )

    def _evaluate_split(
        self, split: Split, outputs_by_split: Mapping[Split, ModelOutputs], data: DecodedDataset
    ) -> EvaluationReport:
        report = evaluation.build_report(
            data.classes, outputs_by_split[split], self._labeled_split(split, data), split,
            outputs_by_split.get("validation"),
            threshold_request=ThresholdRequest(positive=self.config.evaluation.positive_class),
        )  # fmt: skip
        self.run.write_evaluation(split, report.evaluation, evaluation_dict.report_to_dict(report))
        return report

    def _labeled_split(self, split: Split, data: DecodedDataset) -> LabeledSubset:
        return replace(data.labeled_subset(split), leaked=leakage.leaked_contents(self.run.read_leaks(), split))

    def _build_result(self, data: DecodedDataset, fit_result: FitResult, final_model: _FinalModel) -> TrainResult:
        best_epoch, model, evaluations = fit_result.best, final_model.model, final_model.evaluations

        def split_metrics(name: Split) -> SplitMetrics | None:
            return (
                SplitMetrics(evaluations[name].accuracy, evaluations[name].loss, evaluations[name].count)
                if name in evaluations
                else None
            )

        return TrainResult(
            run=str(self.run.path),
            model=self.config.model.name,
            parameters=count_parameters(model),
            classes=data.classes,
            train=TrainingMetrics.from_epoch(best_epoch, data.counts()["train"]),
            validation=split_metrics("validation"),
            test=split_metrics("test"),
            epochs=len(fit_result.history),
            seconds=time.perf_counter() - self.start_time,
            images_per_second=fit_result.images_per_second,
            weights_sha256=weights_sha256(model),
            recipe=self.config.recipe,
            notes=data.notes,
            bundle=None if final_model.no_bundle_reason else str(self.run.path / "bundle"),
            bundle_reason=final_model.no_bundle_reason,
            details={
                "best_epoch": best_epoch.epoch if best_epoch else None,
                "temperature": final_model.temperature,
                "rejects": len(data.unreadable),
                "skipped": data.skipped,
                "cache_hit": data.cache_hit,
                "leaked": {name: to_dict.headline_to_dict(value).get("leaked") for name, value in evaluations.items()},
                "untested_classes": {
                    name: list(evaluation.untested_classes) for name, evaluation in evaluations.items()
                },
            },
        )


def _data_notes(data: DecodedDataset) -> list[str]:
    counts = data.counts()
    split_counts = ", ".join(f"{counts[p]:,} {p}" for p in SPLITS)
    notes = [f"{data.name}: {plural(len(data.classes), 'class', 'classes')}, {split_counts}"]
    if data.unreadable:
        first_reject = data.unreadable[0]
        notes.append(
            f"{plural(len(data.unreadable), 'file')} rejected, such as {first_reject.path}: {first_reject.reason} "
            "(all are in data.jsonl)"
        )
    if data.skipped:
        notes.append(f"{plural(data.skipped, 'file')} skipped that are not images")
    return [*notes, *data.notes]
