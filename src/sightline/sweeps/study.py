"""The Optuna study of a sweep, in which all trials are queued from the start.

Each planned trial has a slot, 1 to N, and waits in the storage; its values are stored with it (grid) or sampled when it
starts (random, tpe). Processes and machines take waiting trials one by one, atomically, so no trial runs twice and the
total is never exceeded. If the process of a trial dies, its slot is queued again.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sightline.callbacks import Progress
from sightline.data.indexing import Sources, build_index, describe_sources
from sightline.data.label_patch import load_and_apply_patch
from sightline.data.recorded_images import hash_images
from sightline.errors import OutputError, SightlineError, UsageError, first_line, require
from sightline.seeding import derive_seed
from sightline.sweeps.parameters import CategoricalParameter, Parameter, Value
from sightline.sweeps.search_space import SearchSpace
from sightline.tasks.protocol import find_task

HEARTBEAT_SECONDS = 30  # after ten missed heartbeats, another machine takes over the trial
HOST_NAME = socket.gethostname()


def import_optuna() -> Any:
    """Import Optuna with its logging silenced."""
    package = require("optuna", "A sweep")
    package.logging.set_verbosity(package.logging.CRITICAL)
    return package


@contextmanager
def open_study(space: SearchSpace, name: str, url: str) -> Iterator[Any]:
    """Open or create the study `name` in the storage at `url`; raise `UsageError` if it belongs to another space.

    `url`: ``sqlite:///study.db`` or another database supported by SQLAlchemy, ``journal:FILE`` (a file on a network
    drive) or ``grpc://HOST:PORT`` (Optuna's proxy). Redis is not supported: Optuna unpickles its content, so anyone
    with write access could run code here.
    """
    package = import_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", package.exceptions.ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", "The distribution is specified by", UserWarning
        )  # if the last step is below high
        try:
            storage = _storage(package, url)
            direction = "minimize" if space.minimize else "maximize"
            study = package.create_study(
                storage=storage,
                study_name=name,
                direction=direction,
                pruner=_build_pruner(package, space),
                load_if_exists=True,
            )
            stored_space = study.user_attrs.get("space")
        except Exception as error:
            raise UsageError(
                f"The study cannot be stored in {_without_password(url)}: {first_line(error).rstrip('.')}. Use a "
                "database such as sqlite:///study.db or postgresql://USER@HOST/DATABASE, journal:FILE or grpc://HOST:PORT."
            ) from error
        try:
            if stored_space is None:
                study.set_user_attr("space", space.canonical_text())
            elif stored_space != space.canonical_text():
                raise UsageError(
                    f"The study {name} in {_without_password(url)} was created with settings or values other than "
                    f"those that {space.name} has now: choose another folder with --out."
                )
            yield study
        finally:
            with suppress(Exception):  # the storage failed, and its error is being raised
                storage.remove_session()
                if hasattr(storage, "engine"):
                    storage.engine.dispose()


def check_images(
    study: Any, url: str, space: SearchSpace, sources: Sources, settings: Sequence[str], progress: Progress
) -> None:
    """Record an identifier of the study's images; raise `UsageError` if it has results from other images.

    The images are read as in the first trial, whose settings end with `settings`.
    """
    config = space.trial_config({p.name: p.check_values[0] for p in space.parameters}, settings)
    targets = find_task(config.model.task).targets
    index = build_index(sources, progress, config.device.threads or None, options=config.data, targets=targets)
    index = load_and_apply_patch(index, Path(config.data.patch) if config.data.patch else None)
    current = hash_images(index.images, (image.split for image in index.images), are_masks=targets.are_masks)
    recorded = study.user_attrs.get("images")
    if recorded == current:
        return
    if recorded is not None and _has_results(study):
        raise UsageError(
            f"The trials of the study {study.study_name} in {_without_password(url)} were trained on images other than "
            f"those now in {describe_sources(sources)}: restore them, or choose another folder with --out, and another "
            "--storage if you set it."
        )
    study.set_user_attr("images", current)


def _has_results(study: Any) -> bool:
    """Return whether any trial is running, or has ended with a result or a reason."""
    states = import_optuna().trial.TrialState
    ended = {states.COMPLETE, states.PRUNED, states.RUNNING}
    return any(t.state in ended or "reason" in t.user_attrs for t in study.get_trials(deepcopy=False))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of the storage at `url` while the study is open to `OutputError`, naming the storage."""
    try:
        yield
    except Exception as error:
        failure = None if isinstance(error, SightlineError) else _storage_error(error)
        if failure is None:
            raise
        raise OutputError(
            f"The study in {_without_password(url)} cannot be read or written: {first_line(failure).rstrip('.')}. "
            "Finished trials are saved: once the storage works, run the same command to continue."
        ) from error


def _storage_error(error: BaseException | None) -> BaseException | None:
    """Return the error raised inside an Optuna storage, which other errors may wrap; None if there is none.

    Storages raise their own errors, without a common base class.
    """
    while error is not None:
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        if any(name.startswith(("optuna.storages.", "sqlalchemy.")) for name in modules):
            return error
        error = error.__cause__ or error.__context__
    return None


def _storage(package: Any, url: str) -> Any:
    scheme, _, rest = url.partition(":")
    if scheme == "journal":
        backend = package.storages.journal.JournalFileBackend(rest.removeprefix("//"))
        return package.storages.JournalStorage(backend)
    if scheme in {"redis", "rediss"}:
        raise ValueError("Optuna unpickles the content of Redis, so anyone with write access could run code here")
    if scheme == "grpc":
        host, _, port = rest.removeprefix("//").partition(":")
        return package.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
    _check_login(url)
    options = {"connect_args": {"timeout": 60}} if scheme.startswith("sqlite") else {"pool_pre_ping": True}
    return package.storages.RDBStorage(
        url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=10 * HEARTBEAT_SECONDS
    )


def _check_login(url: str) -> None:
    """Raise `ValueError` for an @ in a password: SQLAlchemy takes what follows for the host, which its errors quote."""
    from sqlalchemy.engine import make_url

    try:
        host = make_url(url).host or ""
    except ValueError:  # quotes what stands in place of the port
        host = "@"
    if "@" in host:
        raise ValueError("an @ in the user name or password is written %40, and the port is a number")


def _without_password(url: str) -> str:
    without_login = re.sub(r"(?<=://)([^:/?@]*)(:.*)?@", r"\1@", url)
    return without_login.partition("?")[0]  # the query may have a password, too


def _build_pruner(package: Any, space: SearchSpace) -> Any:
    options = space.options
    warmup_steps = options.warmup_epochs + 1  # epochs are counted from 1
    if options.pruner == "median":
        return package.pruners.MedianPruner(n_startup_trials=options.startup_trials, n_warmup_steps=warmup_steps)
    if options.pruner == "hyperband":
        return package.pruners.HyperbandPruner(min_resource=warmup_steps)
    return package.pruners.NopPruner()


def build_sampler(space: SearchSpace, seed: int, slot: int) -> Any:
    """Return a sampler for one slot; a shared sampler would repeat its values after a restart."""
    package = import_optuna()
    number = derive_seed(seed, "sweep", slot) % (1 << 32)
    if space.options.sampler == "tpe":
        return package.samplers.TPESampler(seed=number, multivariate=False)  # samples lazily, when the slot is known
    return package.samplers.RandomSampler(seed=number)


def suggest_value(trial: Any, parameter: Parameter) -> Value:
    """Return the value of `parameter` in `trial`: the queued value, or else a sampled one."""
    if isinstance(parameter, CategoricalParameter):
        value: Value = trial.suggest_categorical(parameter.name, list(parameter.values))
    elif parameter.is_integer:
        step = int(parameter.step or 1)
        value = trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), step=step, log=parameter.log)
    else:
        value = trial.suggest_float(
            parameter.name, parameter.low, parameter.high, step=parameter.step, log=parameter.log
        )
    return value


def trial_slot(trial: Any) -> int | None:
    """Return the slot of a trial; None for a trial of another program."""
    slot = trial.user_attrs.get("slot")
    return slot if type(slot) is int else None


def fill_queue(study: Any, space: SearchSpace, count: int, own_trials: Collection[int] = ()) -> None:
    """Queue every slot from 1 to `count` that has no trial, or whose trial died; this process runs `own_trials`."""
    _fail_dead_trials(study, own_trials)
    trials = trials_by_slot(study)
    cells = space.iter_grid() if space.grid_size is not None else itertools.repeat({})
    for slot, values in zip(range(1, count + 1), cells, strict=False):
        trial = trials.get(slot)
        if trial is None:
            study.enqueue_trial(values, user_attrs={"slot": slot})
        elif _is_dead(trial):
            study.enqueue_trial(trial.params or values, user_attrs={"slot": slot})


def _is_dead(trial: Any) -> bool:
    """Return whether a trial failed because its process died: otherwise it has a reason."""
    return trial.state == import_optuna().trial.TrialState.FAIL and "reason" not in trial.user_attrs


def _fail_dead_trials(study: Any, own_trials: Collection[int]) -> None:
    """Mark running trials as failed if their process is gone, or, on other machines, their heartbeats are missing."""
    package = import_optuna()
    states = package.trial.TrialState
    own = frozenset(own_trials)  # copied before the trials are read: a trial that ends in between leaves `own_trials`
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        if trial.number in own:
            continue
        host, _, process = str(trial.user_attrs.get("owner", "")).rpartition(":")
        if host == HOST_NAME and process.isdecimal() and not _is_alive(int(process[:20])):
            study.tell(trial.number, state=states.FAIL)
    package.storages.fail_stale_trials(study)


def _is_alive(process: int) -> bool:
    if process == os.getpid():  # a previous process with the same PID, as happens in containers
        return False
    if os.name != "posix":  # on Windows, os.kill would terminate the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a damaged study may contain any number
        return False
    except PermissionError:
        return True
    return True


def is_duplicate(study: Any, trial: Any) -> bool:
    """Return whether an earlier trial has the same slot, because two machines filled the queue at the same time."""
    slot = trial_slot(trial)
    earlier = (t for t in study.get_trials(deepcopy=False) if t.number < trial.number and trial_slot(t) == slot)
    return slot is None or not all(_is_dead(other) for other in earlier)


def trials_by_slot(study: Any) -> dict[int, Any]:
    """Return the relevant trial of each slot: the first whose process did not die, or else the last."""
    trials: dict[int, Any] = {}
    for trial in study.get_trials(deepcopy=False):
        slot = trial_slot(trial)
        if slot is not None and (slot not in trials or _is_dead(trials[slot])):
            trials[slot] = trial
    return dict(sorted(trials.items()))
