"""The configuration tree: every setting of a run, with its default, description and range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sightline.config.augmentation import AugmentConfig
from sightline.config.data import DataConfig
from sightline.config.device import DeviceConfig
from sightline.config.durations import check_time_limit
from sightline.config.evaluation import EvaluationConfig
from sightline.config.parse import setting
from sightline.config.split_groups import parse_group_rule
from sightline.errors import ConfigError

MAX_EPOCHS = 1_000_000
MIN_LEARNING_RATE = 1e-12  # 0 would train nothing


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How images are split where the source does not define splits."""

    mode: Literal["hash", "stratified"] = setting(
        "hash",
        "hash: by content hash, so that adding images rarely moves others; stratified: exact fractions per class; "
        "with both, every class with 3 or more images is in every split",
    )
    validation: float = setting(
        0.15, "validation fraction; taken from the training split if the source defines splits", 0, 0.9
    )
    test: float | None = setting(None, "test fraction; unset: 0.15, or 0 if the source defines splits", 0, 0.9)
    group: str = setting(
        "none",
        "images that must stay in the same split: none, near_duplicates (another pass over the images), "
        "folder (subfolders of a class), column:NAME (of a manifest), pattern:REGEX (on the path; its first capturing "
        "group, or the one named group)",
        check=parse_group_rule,
    )
    folds: int = setting(
        0,
        "number of cross-validation folds, at least 2; 0: no cross-validation; a given test split is in no fold",
        0,
        20,
    )
    fold: int | None = setting(None, "recorded by `train --folds`: the fold that a run holds out; do not set it", 0, 19)


@dataclass(frozen=True, slots=True)
class InputConfig:
    """Preprocessing: how every image is decoded and resized before it enters the network."""

    height: int | None = setting(
        None, "height in pixels; unset: the model's default, or the images' own size if they are small", 1, 4096
    )
    width: int | None = setting(
        None,
        "width in pixels; unset: same as height; if both are unset and a pretrained network learns several labels per "
        "image: from the aspect ratio of the images",
        1,
        4096,
    )
    channels: Literal[1, 3] | None = setting(
        None, "3: RGB, 1: grayscale; unset: 1 if all images are grayscale and the weights are not pretrained"
    )
    resize: Literal["auto", "stretch", "crop", "pad"] = setting(
        "stretch",
        "stretch: ignore the aspect ratio; crop: center crop; pad: keep the aspect ratio and add borders; auto: "
        "stretch with several labels per image, since objects may be at the edges; else crop",
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box", "nearest"] = setting(
        "bilinear", "resampling filter, with antialiasing"
    )
    value_range: Literal["auto", "full"] | tuple[float, float] = setting(
        "auto",
        "[low, high]: sample values mapped to black and white in images with more than 8 bits per sample; auto: from "
        "their tags, or else from the training images; full: the full range of the data type",
    )
    page: int = setting(1, "page of multi-page TIFF files or frame of animations, counted from 1", 1, 1_000_000)
    max_megapixels: int = setting(
        50, "maximum megapixels per image; larger ones are rejected; JPEGs count at their decoded scale", 1, 4000
    )
    tile: float = setting(
        0.0,
        "for masks: predict in tiles, cut from the image at this scale; 1: full resolution; 0: resize the whole image",
        0,
        16,
    )

    def __post_init__(self) -> None:
        if not isinstance(self.value_range, str) and not self.value_range[0] < self.value_range[1]:
            raise ConfigError(f"input.value_range must be [low, high] with low < high, not {list(self.value_range)}.")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network architecture and its initial weights."""

    name: str = setting("auto", "a model listed by `sightline models`, or auto")
    task: str = setting(
        "single_label",
        "what is learned; single_label: one class per image, hierarchical: one class of a tree per image, ordinal: one "
        "of several grades, multi_label: any number of classes, segmentation: the class of each pixel",
    )
    weights: str = setting(
        "auto",
        "none (random), imagenet, the path of a weights file, or auto: imagenet if the weights are available locally",
    )
    normalize: Literal["auto", "unit", "symmetric", "imagenet", "caffe", "lite", "raw", "standardize"] = setting(
        "auto",
        "how the graph scales pixels; auto: as the model expects; standardize: by mean and std of the training split",
    )
    head: Literal["softmax", "sigmoid"] = setting(
        "softmax", "output activation; sigmoid: a single output unit, for two classes only"
    )
    pooling: Literal["auto", "average", "max", "flatten"] = setting(
        "auto", "how feature maps become a vector; auto: the model's default"
    )
    hidden_units: tuple[int, ...] | None = setting(
        None, "units of the hidden dense layers; unset: the model's default", 1
    )
    dropout: float | None = setting(None, "dropout rate of the head; unset: the model's default", 0, 0.99)
    alpha: float | None = setting(
        None, "width multiplier, for models that have one; unset: the model's default", 0.01, 4
    )
    groups: Literal[1, 2] | None = setting(None, "groups of AlexNet's grouped convolutions; unset: 2, as in the paper")
    decoder: Literal["auto", "bilinear", "transposed", "fcn32", "fcn16", "fcn8"] = setting(
        "auto",
        "for masks: how feature maps are upsampled; bilinear: interpolation, with skip connections; transposed: "
        "transposed convolutions; fcn32, fcn16, fcn8: class scores at 1, 2 or 3 scales, summed, as in FCN; auto: the "
        "model's default",
    )
    initializer: Literal["auto", "gaussian", "he", "glorot", "identity"] = setting(
        "auto",
        "weight initializer; auto: the model's default; gaussian: N(0, 0.01); identity: convolutions pass their inputs "
        "on, and the last layer starts near zero; all but auto set biases to zero",
    )


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    name: Literal[
        "sgd", "rmsprop", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "adafactor", "lamb", "lion",
        "ftrl", "muon",
    ] = setting("adam", "a Keras optimizer; ftrl discards the initial weights")  # fmt: skip
    learning_rate: float = setting(1e-3, "learning rate before the schedule is applied", MIN_LEARNING_RATE)
    momentum: float = setting(0.9, "momentum; sgd and muon only", 0, 0.9999)
    nesterov: bool = setting(False, "Nesterov momentum; sgd and muon only")
    bias_learning_rate: float | None = setting(
        None,
        "muon: learning rate of biases and normalizations, which are then updated by SGD; unset: by AdamW, at the "
        "learning rate",
        0,
    )
    head_learning_rate: float | None = setting(
        None, "muon: learning rate of the last dense layer, which is then updated by SGD; unset: by AdamW", 0
    )
    weight_decay: float = setting(0.0, "decoupled weight decay, multiplied by the learning rate", 0)
    clip_norm: float = setting(0.0, "maximum global norm of the gradient; 0: no clipping", 0)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """The learning-rate schedule, applied per step within each stage."""

    name: Literal["constant", "linear", "step", "exponential", "cosine", "one_cycle", "cyclical", "plateau"] = setting(
        "constant", "shape of the schedule over a stage"
    )
    warmup_fraction: float = setting(0.0, "fraction of the steps with linear warmup from zero", 0, 1)
    factor: float = setting(0.1, "exponential, step, plateau: multiply the learning rate by this", 0, 1)
    step_size: int = setting(1000, "exponential, step: steps between decays; cyclical: steps of half a cycle", 1)
    staircase: bool = setting(False, "exponential: decay in discrete steps")
    min_lr_fraction: float | None = setting(
        None,
        "minimum, as a fraction of the learning rate: of linear, cosine, plateau (unset: 0), of cyclical (unset: 0.1)",
        0,
        1,
    )
    rise_fraction: float = setting(
        0.45, "one_cycle: fraction of the steps for the rise, and for the fall; then it anneals to zero", 0.01, 0.5
    )
    monitor: Literal["val_loss", "val_accuracy", "val_mean_iou", "loss", "accuracy"] = setting(
        "val_loss", "plateau: metric to monitor"
    )
    compare: Literal["best", "previous"] = setting(
        "best",
        "plateau: which epochs count as no progress; best: those that do not improve on the best one; previous: those "
        "that equal the previous one",
    )
    patience: int = setting(5, "plateau: reduce the learning rate after this many epochs in a row without progress", 1)
    min_delta: float = setting(0.0, "plateau: minimum change that counts as an improvement", 0)
    cooldown: int = setting(0, "plateau: epochs to wait after a reduction", 0)


@dataclass(frozen=True, slots=True)
class EarlyStoppingConfig:
    """When training stops, and which epoch is used."""

    monitor: Literal["auto", "val_loss", "val_accuracy", "val_calibrated_loss", "val_mean_iou", "loss", "accuracy"] = (
        setting(
            "val_loss",
            "metric that selects the best epoch and decides when to stop; val_calibrated_loss: the loss after "
            "temperature scaling, for one class per image; val_mean_iou: for masks; auto: val_calibrated_loss, or "
            "val_loss with several labels per image",
        )
    )
    patience: int = setting(0, "stop after this many epochs without improvement; 0: never", 0)
    min_delta: float = setting(0.0, "minimum change that counts as an improvement", 0)
    epoch: int | None = setting(
        None,
        "stop after this epoch and use its weights; set by `train --folds` for the final model; unset: never",
        1,
        MAX_EPOCHS,
    )
    restore_best_weights: bool = setting(True, "at the end, restore the weights of the best epoch")
    min_validation_images: int = setting(
        0,
        "with fewer validation images than this, too few to show what is better, the stages after the first are "
        "skipped if monitor is val_accuracy or val_calibrated_loss",
        0,
    )


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One training stage; unset fields inherit from [train]."""

    name: str = setting("stage", "name shown in the progress output")
    unfreeze: int | Literal["auto"] = setting(
        -1,
        "number of last backbone layers to unfreeze; 0: train the head only, -1: the whole network; auto: 46, or 90 "
        "for --effort best, and in a network of fewer layers than EfficientNet-Lite0's 140, the same fraction of them",
        -1,
    )
    epochs: int | None = setting(None, "epochs of this stage; unset: train.epochs", 0, MAX_EPOCHS)
    learning_rate: float | None = setting(
        None, "learning rate before the schedule; unset: train.optimizer.learning_rate", MIN_LEARNING_RATE
    )
    batch_size: int | None = setting(None, "images per step; unset: train.batch_size", 1)
    solver: Literal["auto", "gradient", "logistic"] = setting(
        "gradient",
        "gradient: steps of the optimizer; logistic: with unfreeze=0, solve a linear head to its optimum, as one "
        "epoch, by logistic regression with an L2 penalty that is chosen on the validation split; auto: logistic if "
        "the head and the loss allow it",
    )
    penalty: float | None = setting(
        None, "L2 penalty of a solved head; unset: chosen on the validation split, or 0.1 without one", 0
    )
    views: int = setting(
        1,
        "with frozen layers: number of versions of each image (the original and augmented ones) to cache features "
        "of; 0: 4, or fewer with over 4,000 images, twice as many with --effort best, 1 with several labels per image",
        0,
        64,
    )

    @property
    def depth(self) -> int:
        """The value of `unfreeze` in a complete configuration, which is never ``auto``."""
        assert self.unfreeze != "auto", "the depth is not chosen yet"
        return self.unfreeze

    @property
    def is_solved(self) -> bool:
        """Whether the stage is solved instead of trained by steps; ``auto`` counts as solved until it is resolved."""
        return self.solver != "gradient"


def _check_stages(stages: tuple[StageConfig, ...], name: str) -> None:
    """Raise `ConfigError` if there are stages but none of them trains."""
    if stages and all(stage.epochs == 0 and not stage.is_solved for stage in stages):
        raise ConfigError(f"{name} have no epochs, so nothing would be trained: give one of them at least 1.")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How the network is trained."""

    epochs: int = setting(
        20, "total epochs; if a recipe has stages, their epochs are scaled in proportion", 1, MAX_EPOCHS
    )
    batch_size: int = setting(32, "images per step; limited to the number of training images", 1)
    effort: Literal["fast", "balanced", "best"] | None = setting(
        None,
        "training time to spend on accuracy, for recipes with efforts (transfer); fast: only the head; "
        "balanced: then the last layers; best: more layers, on more augmented views; unset: balanced",
    )
    time_limit: str = setting(
        "",
        "wall-clock time for the whole run, such as 90s, 10m or 1h30m; epochs that do not fit are skipped; empty: none",
        check=check_time_limit,
    )
    loss: Literal["cross_entropy", "focal", "binary", "asymmetric", "dice"] = setting(
        "cross_entropy",
        "focal: focus on hard examples; binary: binary cross-entropy of each class on the softmax outputs; asymmetric: "
        "focus on the classes that an image has, for several labels per image; dice: for masks, cross-entropy plus one "
        "minus the mean Dice coefficient",
    )
    label_smoothing: float = setting(0.0, "fraction of each label that is spread over all classes", 0, 0.9)
    class_weights: Literal["none", "balanced"] = setting(
        "none", "balanced: weight classes inversely to their frequency, mean weight 1"
    )
    precision: Literal["device", "auto", "float32", "mixed_bfloat16", "mixed_float16"] = setting(
        "float32",
        "numeric precision of training steps; the saved model is always float32; device: mixed_bfloat16 on GPUs "
        "from NVIDIA's Ampere on, else float32; auto: also where it benchmarks faster, measured once per network and "
        "machine",
    )
    freeze_batch_norm: bool = setting(
        True,
        "keep the batch normalization of a pretrained backbone frozen; false: train it with the layers that a stage "
        "unfreezes; needed for high learning rates",
    )
    l2: float = setting(0.0, "L2 penalty on kernels, added to the loss", 0)
    ema_decay: float = setting(
        0.0,
        "decay of the exponential moving average (EMA) of the weights, which is then validated and saved; reduced "
        "in short stages, so that it spans at most a tenth of the steps; 0: no EMA",
        0,
        0.99999,
    )
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = setting(
        ("tensorboard",),
        "where settings and metrics are also written to: tensorboard (files in the run), mlflow, wandb; []: nowhere",
    )
    checkpoint_minutes: float = setting(
        1.0, "also save a checkpoint within an epoch, after this many minutes; 0: at the end of epochs only", 0
    )
    checkpoint_steps: int = setting(0, "also save a checkpoint every N steps, however long it takes; 0: never", 0)
    max_checkpoints: int = setting(
        2, "number of checkpoints to keep; if the last one is damaged, the previous one is used", 1, 99
    )
    keep_last_checkpoint: bool = setting(
        True,
        "keep the last checkpoint of a complete run, so that `resume --epochs` can extend it: two to four times the "
        "size of the weights, depending on the optimizer",
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    stages: tuple[StageConfig, ...] = setting(
        (), "training stages, in order; empty: a single stage over the whole network", check=_check_stages
    )


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """What the bundle contains besides the model."""

    num_reference_examples: int = setting(
        4, "number of reference examples, checked whenever the bundle is loaded; 0: none", 0, 100
    )
    calibrate: bool = setting(True, "temperature scaling, fitted on the validation split if it is large enough")
    validation_sample: bool = setting(
        True, "features of some validation images, which `sightline watch` compares with the images of a server"
    )


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that determines the result of a run."""

    recipe: str = setting("auto", "recipe that these settings are based on")
    seed: int = setting(0, "seed of all random numbers", 0)
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
