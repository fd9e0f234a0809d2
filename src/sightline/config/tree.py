"""The configuration tree: every setting of a run, with its default, its meaning and its range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sightline.config.groups import group_rule
from sightline.config.parse import setting
from sightline.errors import ConfigError

MOST_EPOCHS = 1_000_000


def check_encoding(name: str, where: str) -> None:
    """Raise `ConfigError` for the name of an encoding of text that Python does not know; empty is none."""
    try:
        "".encode(name or "utf-8")
    except LookupError as error:  # binary codecs such as base64 are none either
        raise ConfigError(
            f"{where} cannot be {name!r}: expected an encoding of text, such as big5, shift_jis or latin-1."
        ) from error


@dataclass(frozen=True, slots=True)
class ColumnsConfig:
    """Which column of a manifest says what; an empty one is recognized by its name."""

    path: str = setting("", "the image file: a column's name, or its number from 1 where there is no header")
    label: str = setting("", "the class")
    split: str = setting("", "train, validation or test")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What a source may take, so that a file made to do harm cannot take all memory, disk or time."""

    file_mb: float = setting(256.0, "MiB of one encoded image", 0.001)
    archive_members: int = setting(2_000_000, "files and folders of one archive", 1)
    archive_gb: float = setting(500.0, "GiB that one archive unpacks to", 0.001)
    archive_ratio: float = setting(100.0, "times its own size that an archive unpacks to, beyond the first 256 MiB", 1)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the images come from, and how their source is read."""

    sources: tuple[str, ...] = setting((), "folders, archives, manifests, idx files or named sets, in order")
    cache: bool = setting(True, "keep decoded pixels on disk for the next run")
    patch: str = setting("", "a file of corrections, as `sightline doctor --fix` writes; empty: none")
    class_level: int | Literal["leaf"] | None = setting(
        None,
        "the level of folders that names the classes: 1 for the uppermost below the splits, 2 for those inside them, "
        "leaf for the folder that holds the image; unset: 1, and nested folders are reported",
        1,
    )
    label_pattern: str = setting(
        "",
        "a regular expression with a group (?P<label>...) that finds the class in a file name, or in the path below "
        "the source if the pattern holds a /; empty: classes are folders",
    )
    labels: str = setting("", "a table (.csv, .tsv, .json) with the labels of a folder of images; empty: none")
    root: str = setting("", "the folder that a manifest's paths start from; empty: the manifest's own")
    encoding: str = setting(
        "",
        "of a manifest that is not in UTF-8, such as big5 or shift_jis; empty: UTF-8, UTF-16 or GBK",
        check=check_encoding,
    )
    allow: tuple[str, ...] = setting((), "errors in the data that do not stop training, by their kind in `doctor`")
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How pictures are divided where the source does not say."""

    mode: Literal["hash", "stratified"] = setting(
        "hash",
        "hash: by content, so that adding images moves almost none; stratified: exact fractions of each class; in both "
        "a class of 3 images or more is in every split",
    )
    validation: float = setting(0.15, "fraction for validation, of the training split where splits are stated", 0, 0.9)
    test: float | None = setting(
        None, "fraction for the test; unset: 0.15, or none where the source states its splits", 0, 0.9
    )
    group: str = setting(
        "none",
        "what stays on one side: none, near (near duplicates; looks at every image once more), folder (below the "
        "class), column:NAME (of a manifest), pattern:REGEX (on the path; its first group, or that named group)",
        check=group_rule,
    )


@dataclass(frozen=True, slots=True)
class PictureConfig:
    """The picture contract: what every picture is turned into before the network sees it."""

    height: int | None = setting(None, "pixels; unset: the model's own size, or the pictures' where small", 1, 4096)
    width: int | None = setting(None, "pixels; unset: as height", 1, 4096)
    channels: Literal[1, 3] | None = setting(
        None, "3 colour, 1 grey; unset: grey if all pictures are and the model may"
    )
    resize: Literal["stretch", "crop", "pad"] = setting(
        "stretch", "stretch: whole picture, both sides to size; crop: centre only; pad: whole picture, bars added"
    )
    filter: Literal["bilinear", "bicubic", "lanczos", "box", "nearest"] = setting(
        "bilinear", "resampling filter, antialiased"
    )
    range: Literal["auto", "full"] | tuple[float, float] = setting(
        "auto",
        "[low, high]: the values that become black and white in images of more than 8 bits per sample; auto: by their "
        "tags, else by the training images' values; full: by the type alone",
    )
    page: int = setting(1, "page of multi-page TIFF files, frame of animated files", 1, 1_000_000)
    max_megapixels: int = setting(50, "larger images are rejected; a JPEG is measured as it is decoded", 1, 4000)

    def __post_init__(self) -> None:
        if not isinstance(self.range, str) and not self.range[0] < self.range[1]:
            raise ConfigError(f"picture.range must be [low, high] with low < high, not {list(self.range)}.")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which network."""

    name: str = setting("auto", "a name that `sightline models` lists, or auto")
    weights: str = setting("auto", "none, imagenet, a file's path, or auto: imagenet where the file lies here")
    normalize: Literal["auto", "unit", "symmetric", "imagenet", "caffe", "raw", "standardize"] = setting(
        "auto", "how pixels are scaled inside the graph; auto: the model's own; standardize: by the training part"
    )
    head: Literal["softmax", "sigmoid"] = setting("softmax", "sigmoid: one output unit, two classes only")
    pooling: Literal["auto", "average", "max", "flatten"] = setting("auto", "from feature maps to a vector")
    hidden: tuple[int, ...] | None = setting(None, "units of dense layers before the output; unset: the model's own", 1)
    dropout: float | None = setting(None, "rate beside the dense layers; unset: the model's own", 0, 0.99)
    alpha: float | None = setting(None, "width multiplier, for models that have one; unset: the model's own", 0.01, 4)
    groups: Literal[1, 2] | None = setting(None, "of channels in alexnet's convolutions; unset: 2, as in the paper")
    init: Literal["auto", "gaussian", "he", "glorot"] = setting(
        "auto", "first weights; auto: the model's own; gaussian: N(0, 0.01); biases zero but for auto"
    )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Random changes of the training pictures, drawn anew for every picture and epoch."""

    flip: bool = setting(False, "mirror left to right, half of the time")
    flip_alternate: bool = setting(False, "with flip: every other epoch, not by chance; which comes first is drawn")
    flip_vertical: bool = setting(False, "mirror top to bottom, half of the time")
    rotation: float = setting(0.0, "degrees, either way", 0, 180)
    shift: float = setting(0.0, "share of height and width, either way", 0, 1)
    zoom: float = setting(0.0, "0.2: between 0.8 and 1.2 times, each axis by itself", 0, 0.9)
    shear: float = setting(0.0, "degrees, either way", 0, 60)
    crop: float = setting(0.0, "every side grows by this share, then the old size is cut out anywhere", 0, 0.5)
    brightness: float = setting(0.0, "share of full white added or taken away", 0, 1)
    contrast: float = setting(0.0, "0.2: between 0.8 and 1.2 times, around the picture's mean", 0, 1)
    saturation: float = setting(0.0, "0.2: between 0.8 and 1.2 times, around each pixel's grey", 0, 1)
    hue: float = setting(0.0, "share of the colour circle, either way", 0, 0.5)
    fill: Literal["nearest", "reflect", "constant"] = setting("nearest", "what shows beyond the border")
    erasing: float = setting(0.0, "chance that a rectangle turns into noise", 0, 1)
    erasing_from: float = setting(0.02, "least share of the area erased", 0, 1)
    erasing_to: float = setting(0.4, "greatest share of the area erased", 0, 1)
    randaugment: int = setting(0, "RandAugment: so many operations, chosen anew for every picture; 0: none", 0, 8)
    randaugment_magnitude: float = setting(9.0, "RandAugment: strength of its operations; 10 is the greatest", 0, 10)
    mixup: float = setting(
        0.0, "alpha: blends two pictures of a batch and their labels; 0: off; not on features of frozen layers", 0, 100
    )
    cutmix: float = setting(
        0.0, "alpha: as mixup, by pasting a rectangle; with both, each picture takes one of them by chance", 0, 100
    )


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights follow their gradients."""

    name: Literal[
        "sgd", "rmsprop", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "adafactor", "lamb", "lion",
        "ftrl", "muon",
    ] = setting("adam", "one of Keras' optimizers; ftrl forgets the weights that it starts from")  # fmt: skip
    learning_rate: float = setting(1e-3, "before the schedule", 0)
    momentum: float = setting(0.9, "for sgd only", 0, 0.9999)
    nesterov: bool = setting(False, "for sgd only")
    weight_decay: float = setting(0.0, "decoupled, per step times the rate", 0)
    clip_norm: float = setting(0.0, "greatest global norm of the gradient; 0: no limit", 0)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How the learning rate moves, step by step."""

    name: Literal["constant", "step", "exponential", "cosine", "one_cycle", "cyclical", "plateau"] = setting(
        "constant", "its shape over the stage"
    )
    warmup: float = setting(0.0, "share of the steps over which the rate climbs linearly from zero", 0, 1)
    factor: float = setting(0.1, "exponential, step and plateau: multiply by this ...", 0, 1)
    every: int = setting(1000, "... every so many steps; cyclical: steps from foot to top", 1)
    staircase: bool = setting(False, "exponential: in jumps, not smoothly")
    floor: float | None = setting(
        None, "share of the rate: where cosine and plateau end (unset: 0), foot of the cycles (unset: 0.1)", 0, 1
    )
    rise: float = setting(0.45, "one_cycle: share of the steps up, the same down; the rest falls to zero", 0.01, 0.5)
    monitor: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = setting("val_loss", "plateau: the figure")
    compare: Literal["best", "previous"] = setting(
        "best", "plateau: epochs count that are not better than the best so far, or that equal the one before"
    )
    patience: int = setting(5, "plateau: after so many such epochs in a row the rate falls", 1)
    min_delta: float = setting(0.0, "plateau: a change not greater than this is none", 0)
    cooldown: int = setting(0, "plateau: epochs after a fall that do not count", 0)


@dataclass(frozen=True, slots=True)
class EarlyStopConfig:
    """When to stop before the last epoch."""

    monitor: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = setting(
        "val_loss", "the figure that decides which epoch was best, and when to stop"
    )
    patience: int = setting(0, "stop after so many epochs without a better figure; 0: never", 0)
    min_delta: float = setting(0.0, "a change smaller than this is none", 0)
    restore_best: bool = setting(True, "end with the best epoch's weights, not the last one's")


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage of training; an unset field takes the value of [train]."""

    name: str = setting("stage", "shown while it runs")
    thaw: int = setting(-1, "layers of the backbone's end that learn too; 0: the head alone, -1: the whole network", -1)
    epochs: int | None = setting(None, "passes over the training part; unset: train.epochs", 0, MOST_EPOCHS)
    learning_rate: float | None = setting(None, "before the schedule; unset: train.optimizer.learning_rate", 0)
    batch_size: int | None = setting(None, "pictures per step; unset: train.batch_size", 1)
    views: int = setting(
        1, "with frozen layers: differently augmented copies of each picture whose features are kept", 1, 64
    )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train."""

    epochs: int = setting(
        20, "passes over the training images in all; laid on a recipe with stages, it scales theirs", 0, MOST_EPOCHS
    )
    batch_size: int = setting(32, "images per step; no more than there are training images", 1)
    loss: Literal["cross_entropy", "focal", "binary"] = setting(
        "cross_entropy", "focal: hard pictures weigh more; binary: each class against the rest, on the softmax outputs"
    )
    label_smoothing: float = setting(0.0, "share of each label spread over all classes", 0, 0.9)
    class_weights: Literal["none", "balanced"] = setting("none", "balanced: rare classes weigh more, mean weight 1")
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = setting(
        "float32",
        "arithmetic of the training step; the saved model is float32 always; auto: bfloat16 where it is measured to be "
        "faster here, once for each network and machine",
    )
    l2: float = setting(0.0, "weight penalty on kernels, added to the loss", 0)
    average: float = setting(
        0.0,
        "judge and keep the weights' moving average, of which this share stays in each step (less in short stages: it "
        "spans a tenth of the steps at most); 0: none",
        0,
        0.99999,
    )
    tensorboard: bool = setting(True, "write event files")
    checkpoint_minutes: float = setting(
        1.0, "save the state of training within an epoch too, after so many minutes; 0: at ends of epochs only", 0
    )
    checkpoint_steps: int = setting(0, "and after every so many steps, whatever that costs; 0: never", 0)
    checkpoint_keep: int = setting(2, "so many checkpoints are kept; a damaged one gives way to the one before", 1, 99)
    keep_state: bool = setting(
        True,
        "keep the state of training of a complete run, which `resume --epochs` goes on from: two to four times the "
        "weights, by the optimizer",
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    stages: tuple[StageConfig, ...] = setting((), "in order; none: one stage over the whole network")


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """What to compute on."""

    backend: Literal["auto", "tensorflow", "jax", "torch"] = setting("auto", "Keras backend")
    gpus: tuple[int, ...] | None = setting(None, "numbers of the GPUs to use, as [0, 1]; []: none; unset: all", 0)
    count: int = setting(1, "devices of each host that share each step; 0: all that are there", 0)
    scaling: Literal["none", "linear", "sqrt"] = setting(
        "none",
        "none: the devices divide train.batch_size among them; linear, sqrt: each takes as much, and the rate is "
        "multiplied by their number or its root",
    )
    hosts: int = setting(1, "processes that share each step; kept here by `train --hosts`, never set", 1)
    memory_growth: bool = setting(True, "take a GPU's memory as it is needed, not all at the start")
    engine: Literal["auto", "onnxruntime", "keras"] = setting(
        "auto", "what computes features of frozen layers; auto: ONNX Runtime on a CPU, Keras elsewhere"
    )
    threads: int = setting(0, "threads for arithmetic and decoding; 0: one per core", 0, 1024)
    deterministic: bool = setting(
        False, "refuse operations whose result changes from call to call; a CPU has none, a GPU is slower without"
    )


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """What the run's bundle holds besides the model."""

    golden: int = setting(
        4, "pictures of the validation part that travel along, as a check of every copy; 0: none", 0, 100
    )
    calibrate: bool = setting(True, "divide the logits by a temperature fitted on the validation part, if it is enough")


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What the evaluation is of."""

    positive: str = setting(
        "", "of two classes, the one to be detected; empty: by its name (defect, positive, ...), else the second class"
    )


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides the outcome of a run."""

    recipe: str = setting("auto", "the recipe that these settings started from")
    seed: int = setting(0, "everything random derives from it", 0)
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    picture: PictureConfig = field(default_factory=PictureConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
