"""The optimal linear head: logistic regression with an L2 penalty on the features of frozen layers.

On fixed features, the best head is the solution of a convex problem. L-BFGS finds it in seconds, with no learning rate,
number of epochs or order of images to choose; the penalty is chosen by the loss on the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline import backend, process
from sightline.config import RunConfig
from sightline.data.batches import iterate_slices
from sightline.data.types import Subset, join_subsets
from sightline.distributed import cluster
from sightline.errors import UsageError
from sightline.models.build import Network
from sightline.models.head import DENSE_LAYER, LOGITS
from sightline.tasks.protocol import LossGradient, Task, find_task
from sightline.training import checkpoints
from sightline.training.checkpoints import Arrays

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties to choose from: the loss is the mean cross-entropy plus half the penalty times the squared weights."""
DEFAULT_PENALTY = 0.1  # without a validation split
PATIENCE = 2  # stop after so many weaker penalties that do not lower the validation loss
CHUNK_ROWS = 4096
MAX_ITERATIONS = 200
SMALL_FEATURES = 1 << 20  # total size of all features


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A dense layer from features [F] to scores [U]: `kernel` float32 [F, U], `bias` float32 [U].

    `loss`, without the penalty, and `accuracy` are for the training images.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    penalty: float
    loss: float
    accuracy: float

    def compute_scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores float32 [N, U] of features float32 [N, F]; in most tasks, the scores are the logits."""
        scores: NDArray[np.float32] = features @ self.kernel + self.bias
        return scores


def list_obstacles(config: RunConfig, *, has_hidden_layers: bool) -> list[str]:
    """Return why the head is not a logistic regression on features of frozen layers, as clauses; empty if it is."""
    train = config.train
    obstacles = {
        "the head has several layers": has_hidden_layers,
        f"model.head is {config.model.head}": config.model.head != "softmax",
        f"train.loss is {train.loss}": train.loss != "cross_entropy",
        f"train.label_smoothing is {train.label_smoothing:g}": train.label_smoothing != 0,
        f"train.l2 is {train.l2:g}": train.l2 != 0,  # the solver has its own penalty
    }
    return [text for text, applies in obstacles.items() if applies]


def check_settings(network: Network, config: RunConfig) -> None:
    """Raise `UsageError` if a stage to be solved is not a logistic regression, or if that is not decided yet."""
    heads = [layer.name for layer in network.model.layers if layer.weights and layer.name not in network.backbone]
    for number, stage in enumerate(config.train.stages):
        if not stage.is_solved:
            continue
        if stage.solver == "auto":
            raise UsageError(
                f"Stage {stage.name!r} has solver='auto', expected 'gradient' or 'logistic': choose one of them."
            )
        obstacles = list_obstacles(config, has_hidden_layers=heads != [DENSE_LAYER])
        if stage.unfreeze:
            obstacles.insert(0, f"unfreeze is {stage.unfreeze}, not 0")
        if obstacles:
            raise UsageError(
                f"Stage {stage.name!r} solves a logistic regression on the features of the frozen layers, which is not "
                f"possible: {' and '.join(obstacles)}. Train it by steps: --set train.stages.{number}.solver=gradient "
                f"--set train.stages.{number}.epochs=12."
            )


def load_solver() -> None:
    """Import the solver, which takes 0.2 s."""
    import scipy.optimize  # noqa: F401  # comes with scikit-learn


def limit_threads(train: Subset) -> AbstractContextManager[Any]:
    """Return a context in which small products use one thread: idle threads would spin on the other cores."""
    is_small = math.prod(train.pixels.shape) <= SMALL_FEATURES
    return process.one_blas_thread() if is_small else nullcontext()


def train_head(
    model: Any,
    train: Subset,
    validation: Subset,
    config: RunConfig,
    check_stop: Callable[[], None],
    penalty: float | None = None,
) -> LinearHead:
    """Fit the head of `model` to features, set its weights, and return it. Every host must call this.

    Without a `penalty`, the validation split determines it.
    """
    layer = model.get_layer(DENSE_LAYER)
    num_classes = int(model.output[LOGITS].shape[-1])
    task = find_task(config.model.task)
    weights = task.compute_weights(train.labels, num_classes, config.train.class_weights)
    if penalty is None:
        head = fit_linear_head(task, train, validation, num_classes, weights, check_stop)
    else:
        head = next(iter_heads(task, train, num_classes, weights, check_stop, (penalty,)))
    for variable, values in ((layer.kernel, head.kernel), (layer.bias, head.bias)):
        backend.assign(variable, cluster.broadcast_array(values))
    return head


def refit_head(
    model: Any, train: Subset, validation: Subset, config: RunConfig, check_stop: Callable[[], None], penalty: float
) -> Arrays:
    """Return the variables of `model` with the head fitted to the images of both subsets; `model` is not changed.

    `penalty` is the one chosen on the validation images.
    """
    layer, both = model.get_layer(DENSE_LAYER), join_subsets(train, validation)
    num_classes = int(layer.bias.shape[0])
    task = find_task(config.model.task)
    weights = task.compute_weights(both.labels, num_classes, config.train.class_weights)
    head = next(iter_heads(task, both, num_classes, weights, check_stop, (penalty,)))
    names = checkpoints.copy_variables(model, layer)
    return {name: head.kernel if name.endswith(":kernel") else head.bias for name in names}


def fit_linear_head(
    task: Task,
    train: Subset,
    validation: Subset,
    num_classes: int,
    weights: NDArray[np.float32] | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> LinearHead:
    """Return the head with the lowest loss on `validation`, trying penalties from the strongest to the weakest.

    Both subsets contain features float32 [N, F]. `weights` come from `Task.compute_weights`. Without validation images,
    the penalty is `DEFAULT_PENALTY`. `check_stop` is called in every iteration; an exception from it ends the fit.
    """
    if not len(validation):
        return next(iter_heads(task, train, num_classes, weights, check_stop, (DEFAULT_PENALTY,)))
    best, best_loss, since_best = None, np.inf, 0
    for head in iter_heads(task, train, num_classes, weights, check_stop):
        slices = iterate_slices(len(validation), CHUNK_ROWS)
        scores = np.concatenate([head.compute_scores(validation.take(rows)) for rows in slices])
        loss = task.score(task.link_scores(scores), validation.labels).loss
        if loss < best_loss:
            best, best_loss, since_best = head, loss, 0
        else:
            since_best += 1
        if since_best == PATIENCE:
            break
    assert best is not None, "the loss of a solution is finite"
    return best


class HeadLoss(Protocol):
    """The loss that a head minimizes; a `Task` is one, as it has these methods."""

    def count_units(self, num_classes: int) -> int:
        """Return the number U of scores for K classes."""

    def differentiate_loss(self, scores: NDArray[np.float64], labels: NDArray[Any]) -> LossGradient:
        """Return the loss for scores [n, U], and its gradient."""


def iter_heads(
    task: HeadLoss,
    train: Subset,
    num_classes: int,
    weights: NDArray[np.float32] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    penalties: Sequence[float] = PENALTIES,
) -> Iterator[LinearHead]:
    """Yield the optimum for each penalty, starting the search at the previous optimum.

    `weights` come from `Task.compute_weights` for the images of `train`; None for equal weights.
    """
    return map(_Problem(task, train, num_classes, weights, check_stop).solve, penalties)


def find_scale(std: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return by what to divide features with standard deviations `std` [F]: Pareto scaling, float64 [F].

    The scale is halfway, on a logarithmic scale, between `std`, which would make all features equally important, and
    one number for all. Among few images, some features hardly vary by chance, and to standardize these lets them decide
    (van den Berg et al., 2006, https://doi.org/10.1186/1471-2164-7-142). Features that are constant, but for rounding,
    are not enlarged.
    """
    spread = float(np.sqrt(np.mean(np.square(std, dtype=np.float64)))) or 1.0
    return np.where(std <= 1e-3 * std.mean(), spread, np.sqrt(std * spread))


class _Problem:
    """The regression on scaled features; features are never copied, as their scale is moved into the weights.

    The solution is a combination of the images' features, so with fewer images than features, the search uses the
    coordinates in an orthonormal basis of them, `self._basis`. The penalty is the same in any such basis.
    """

    def __init__(
        self,
        task: HeadLoss,
        train: Subset,
        num_classes: int,
        weights: NDArray[np.float32] | None,
        check_stop: Callable[[], None],
    ) -> None:
        self._task, self._train, self._check_stop = task, train, check_stop
        self._num_units = task.count_units(num_classes)
        weights64 = np.ones((len(train), 1)) if weights is None else weights.astype(np.float64)
        self._weights = weights64 / weights64.sum() * weights64.shape[1]
        first_loss = task.differentiate_loss(np.zeros((1, self._num_units)), train.labels[:1]).losses
        self._num_terms = first_loss.shape[1]  # terms in the loss of an image, which the optimum sums
        moments = [(x.sum(0, np.float64), np.square(x, dtype=np.float64).sum(0)) for _, x in self._iter_features()]
        mean, mean_square = (np.sum(values, 0) / len(train) for values in zip(*moments, strict=True))
        self._mean, self._scale = mean, find_scale(np.sqrt(np.maximum(mean_square - mean**2, 0)))
        self._basis: NDArray[np.float64] | None = None
        if len(train) < len(mean):
            self._change_basis()
        self._theta = np.zeros((len(self._mean) + 1, self._num_units))

    def _change_basis(self) -> None:
        """Replace the features with their coordinates in a basis, with mean 0 and scale 1."""
        basis, coordinates = np.linalg.qr(((self._train.take(slice(None)) - self._mean) / self._scale).T)
        self._basis, self._plain_mean = basis / self._scale[:, None], self._mean
        count = len(self._train)
        features = coordinates.T.astype(np.float32, "C")
        self._train = Subset(features, np.arange(count), self._train.labels, self._train.paths)
        self._mean, self._scale = np.zeros(count), np.ones(count)

    def _iter_features(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        train, features = self._train, np.asarray(self._train.pixels)
        in_order = np.array_equal(train.rows, np.arange(len(features)))  # otherwise rows are copied, which takes longer
        slices = iterate_slices(len(train), CHUNK_ROWS)
        return ((rows, features[rows] if in_order else train.take(rows)) for rows in slices)

    def solve(self, penalty: float) -> LinearHead:
        """Return the optimum for a penalty, starting the search at the last optimum."""
        from scipy.optimize import minimize  # comes with scikit-learn

        options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-7, "gtol": 1e-5}
        solution = minimize(self._evaluate, self._theta.ravel(), (penalty,), "L-BFGS-B", jac=True, options=options)
        self._theta = solution.x.reshape(self._theta.shape)
        kernel, bias = self._split(solution.x)
        loss, _, _, accuracy = self._sum_over_rows(kernel, bias)
        if self._basis is not None:
            kernel = (self._basis @ kernel).astype(np.float32)
            bias = (bias - self._plain_mean @ kernel).astype(np.float32)
        return LinearHead(kernel, bias, penalty, loss / self._num_terms, accuracy)

    def _split(self, theta: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Convert the parameters for scaled features to the kernel and bias for unscaled features."""
        matrix = theta.reshape(-1, self._num_units)
        kernel = matrix[:-1] / self._scale[:, None]
        return kernel.astype(np.float32), (matrix[-1] - self._mean @ kernel).astype(np.float32)

    def _evaluate(self, theta: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        self._check_stop()
        loss, kernel_gradient, bias_gradient, _ = self._sum_over_rows(*self._split(theta))
        weights = theta.reshape(-1, self._num_units)[:-1]
        gradient = np.empty((len(self._mean) + 1, self._num_units))
        gradient[:-1] = (kernel_gradient - np.outer(self._mean, bias_gradient)) / self._scale[
            :, None
        ] + penalty * weights
        gradient[-1] = bias_gradient
        return loss + penalty / 2 * float(np.square(weights).sum()), gradient.ravel()

    def _sum_over_rows(
        self, kernel: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64], float]:
        """Return the loss, its gradients with respect to kernel and bias, and the accuracy."""
        loss = num_correct = 0.0
        kernel_gradient, bias_gradient = np.zeros(kernel.shape), np.zeros(bias.shape)
        for rows, features in self._iter_features():
            labels, weights = self._train.labels[rows], self._weights[rows]
            gradient = self._task.differentiate_loss((features @ kernel + bias).astype(np.float64), labels)
            loss += float(np.vdot(np.broadcast_to(weights, gradient.losses.shape), gradient.losses))
            num_correct += float(gradient.correct.sum())
            residuals = gradient.residuals * weights
            kernel_gradient += features.T @ residuals.astype(np.float32)
            bias_gradient += residuals.sum(0)
        return loss, kernel_gradient, bias_gradient, num_correct / len(self._train)
