"""Every option of the command line, declared once: names, type, range, general default, help.

Imports little: `--help` must answer at once.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import cloup

# Where neither a flag nor the environment nor a recipe says otherwise.
DEFAULTS: dict[str, Any] = {
    "data_dir": "./data",
    "output_dir": None,  # ./output_<date>_<time>
    "model_repository": "./model_repository",
    "image_size": None,
    "criteria": ("nll",),
    "optimizer_id": "adam",
    "scheduler_id": "none",
    "epochs": 5,
    "max_steps": None,
    "batch_size": 64,
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
    "momentum": 0.9,
    "gamma": 0.7,
    "label_smoothing": 0.0,
    "gradient_clip_norm": 0.0,
    "augmentation": "none",
    "hard_fraction": 1.0,
    "validation_fraction": 0.1,
    "early_stopping_patience": 0,
    "seed": 1,
    "precision": "auto",
    "trainer": "single",
    "test_batch_size": 1000,
    "log_interval": 10,
    "min_test_accuracy": 0.97,
    "min_per_class_accuracy": 0.90,
    "max_model_size_mb": 10.0,
    "max_inference_time_ms": 50.0,
}
ENGINES = ("auto", "embedded", "docker")
FORMATS: tuple[Literal["pytorch", "onnx", "torchscript"], ...] = ("pytorch", "onnx", "torchscript")


class FiniteRange(click.FloatRange):
    """A number inside a range; unlike click's own range it refuses NaN and infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Lets pass what a container engine takes for a size."""
    if value and not re.fullmatch(r"[1-9][0-9]*[bkmg]?", value):
        raise click.BadParameter(f"{value} is not a size: expected a number and b, k, m or g, as 4g.", ctx, param)
    return value


class Named(NamedTuple):
    """NAME or NAME:V, as typed."""

    name: str
    version: int | None


class Version(NamedTuple):
    """NAME:V, as typed."""

    name: str
    number: int


class _NamedType(click.ParamType[Any]):
    name = "NAME[:V]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pipeline.config import RELEASE_NAME

        name, colon, number = value.partition(":")
        if not RELEASE_NAME.fullmatch(name) or (colon and not (number.isdecimal() and int(number))):
            self.fail(f"{value!r} is not {self.name}, as digits:3 for version 3 of digits.", param, ctx)
        return Named(name, int(number) if colon else None)


class _VersionType(_NamedType):
    name = "NAME:V"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, number = super().convert(value, param, ctx)
        if number is None:
            self.fail(f"{value!r} is not {self.name}: name the version, as {name}:3.", param, ctx)
        return Version(name, number)


class _NameType(_NamedType):
    name = "NAME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, number = super().convert(value, param, ctx)
        if number is not None:
            self.fail(f"{value!r} is not {self.name}: leave out the version.", param, ctx)
        return name


NAME = _NameType()
NAMED = _NamedType()
VERSION = _VersionType()
SHARE = FiniteRange(0, 1)
POSITIVE = FiniteRange(0, min_open=True)
NOT_NEGATIVE = FiniteRange(0)
COUNT = click.IntRange(1)
NOT_NEGATIVE_COUNT = click.IntRange(0)
PORT = click.IntRange(0, 65535)
SEED = click.IntRange(0, 2**32 - 1)
FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _recipe(*names: str, kind: Any, text: str, **more: Any) -> Option:
    """An option that a model's recipe may set."""
    default = DEFAULTS[names[0].removeprefix("--").replace("-", "_")]
    return cloup.option(*names, type=kind, default=None, help=f"{text} [default: the recipe's, else {default}]", **more)


def _plain(*names: str, kind: Any, text: str) -> Option:
    """An option with one default for all models."""
    default = DEFAULTS[names[0].removeprefix("--").replace("-", "_")]
    return cloup.option(
        *names, type=kind, default=None, help=text + ("" if default is None else f" [default: {default}]")
    )


model_repository = cloup.option(
    "--model-repository",
    metavar="DIR",
    help="Triton model repository [env: MODEL_REPOSITORY; default: ./model_repository]",
)
data_dir = cloup.option(
    "--data-dir", metavar="DIR", help="Where the data lies, or is fetched to [env: DATA_DIR; default: ./data]"
)
sign_key = cloup.option(
    "--sign-key",
    type=OLD_FILE,
    metavar="FILE",
    help="Sign the version by this private key in PEM [env: SIGN_KEY_PASSPHRASE, where it has one]",
)
quiet = cloup.option("-q", "--quiet", is_flag=True, help="Silence everything but errors")
debug = cloup.option("--debug", is_flag=True, help="Show a traceback with an error")

# Whose signatures count.
SIGNATORIES = (
    cloup.option("--key", "keys", type=OLD_FILE, multiple=True, metavar="FILE", help="Public key; may be repeated"),
    cloup.option("--identity", metavar="ID", help="Whom Sigstore has certified, as an address or a workflow's URL"),
    cloup.option("--identity-provider", metavar="URL", help="OpenID Connect provider of that identity"),
    cloup.option(
        "--trust-config",
        type=OLD_FILE,
        metavar="FILE",
        help="Sigstore's, for --identity without a network [default: fetched]",
    ),
)

TRAIN = (
    cloup.option_group(
        "What to train",
        cloup.option("--model-id", default="mnist_cnn_v1", show_default=True, help="Architecture"),
        cloup.option("--dataset-id", help="Data set [default: mnist_v1; digits_v1 where MNIST is not to be had]"),
        data_dir,
        cloup.option(
            "--output-dir", metavar="DIR", help="The run's folder [env: OUTPUT_DIR; default: ./output_<date>_<time>]"
        ),
        _plain(
            "--image-size",
            kind=click.IntRange(8, 1024),
            text="Height and width of an image folder's pictures, in pixels [default: 64]",
        ),
    ),
    cloup.option_group(
        "Training",
        cloup.option(
            "--criterion-id",
            multiple=True,
            metavar="ID[:WEIGHT]",
            help="Loss; repeat it for a weighted sum, as nll:1.0 [default: the recipe's, else nll]",
        ),
        _recipe("--optimizer-id", kind=str, text="Optimizer"),
        _recipe("--scheduler-id", kind=str, text="Learning-rate schedule"),
        _recipe("--epochs", kind=COUNT, text="Passes over the training images, in all"),
        cloup.option(
            "--add-epochs",
            type=NOT_NEGATIVE_COUNT,
            metavar="N",
            help="In place of --epochs: N more than the checkpoint has; 0: only what follows the training",
        ),
        cloup.option(
            "--max-steps",
            type=COUNT,
            help="End after so many steps, even within an epoch [default: the recipe's, unless --epochs is given]",
        ),
        _recipe("--batch-size", kind=COUNT, text="Images per step"),
        cloup.option(
            "--learning-rate",
            "--lr",
            type=POSITIVE,
            help=f"Peak learning rate [default: the recipe's, else {DEFAULTS['learning_rate']}]",
        ),
        _recipe("--weight-decay", kind=NOT_NEGATIVE, text="Weight decay, not applied to biases and norms"),
        _recipe("--label-smoothing", kind=FiniteRange(0, 1, max_open=True), text="Label smoothing"),
        _recipe(
            "--augmentation",
            kind=click.Choice(("none", "shift", "flip", "flip_shift", "affine")),
            text="What is done to training images: shift by a pixel; flip left and right; "
            "flip_shift: both; affine: rotate, scale, shear and shift",
        ),
        _recipe(
            "--hard-fraction",
            kind=FiniteRange(0, 1, min_open=True),
            text="Share of the images, those of the highest loss, that every second epoch has",
        ),
        _plain("--gradient-clip-norm", kind=NOT_NEGATIVE, text="Clip the gradient to this norm; 0: do not"),
        _plain("--gamma", kind=POSITIVE, text="Factor per epoch of the schedule 'step'"),
        _recipe("--validation-fraction", kind=FiniteRange(0, 0.9), text="Share of training images set aside"),
        _plain(
            "--early-stopping-patience",
            kind=NOT_NEGATIVE_COUNT,
            text="Stop after so many epochs without a better validation accuracy; 0: do not",
        ),
        _plain("--seed", kind=SEED, text="Seed of all randomness"),
        _plain("--test-batch-size", kind=COUNT, text="Images per step of the evaluation in PyTorch"),
        _plain("--log-interval", kind=COUNT, text="Batches between two log lines"),
        cloup.option(
            "--checkpoint",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Where the checkpoint lies [default: checkpoints/last.pt in the run's folder]",
        ),
        cloup.option(
            "--save-model/--no-save-model", default=True, show_default=True, help="Write a checkpoint after each epoch"
        ),
        cloup.option(
            "--resume/--no-resume",
            default=True,
            show_default=True,
            help="Go on from the last checkpoint",
        ),
        cloup.option("--tensorboard", is_flag=True, help="Write the metrics for TensorBoard, too; needs that package"),
        cloup.option(
            "--dry-run", is_flag=True, help="One pass over everything, one batch each; judge and publish nothing"
        ),
    ),
    cloup.option_group(
        "Device",
        cloup.option(
            "--device",
            type=click.Choice(("auto", "cpu", "cuda", "mps")),
            default="auto",
            show_default=True,
            help="Device to train on",
        ),
        cloup.option("--no-cuda", is_flag=True, help="Do not use a CUDA device"),
        cloup.option("--no-mps", is_flag=True, help="Do not use Apple's GPU"),
        _plain(
            "--precision",
            kind=click.Choice(("auto", "fp32", "bf16", "fp16")),
            text="Of forward passes in training; auto: bf16 where it is measured to be faster, else fp32",
        ),
        _plain(
            "--trainer",
            kind=click.Choice(("single", "hogwild", "ddp")),
            text="One process; hogwild: several on one network in shared memory; ddp: torchrun, also on many hosts",
        ),
        cloup.option(
            "--num-processes", type=COUNT, help="Training processes on this host [default: 2; 1 with --trainer single]"
        ),
    ),
    cloup.option_group(
        "Export",
        cloup.option(
            "--export-format",
            "--export_format",
            "export_formats",
            type=click.Choice(("all", *FORMATS)),
            multiple=True,
            help="File formats; may be repeated [default: all]",
        ),
        cloup.option("--skip-export", is_flag=True, help="Write no model files, and so release nothing"),
        cloup.option("--skip-visualizations", is_flag=True, help="Draw no plots"),
    ),
    cloup.option_group(
        "Gates",
        _plain("--min-test-accuracy", kind=SHARE, text="Least accuracy on the test set, 0 to 1"),
        _plain("--min-per-class-accuracy", kind=SHARE, text="Least accuracy of the worst class, 0 to 1"),
        _plain("--max-model-size-mb", kind=POSITIVE, text="Largest served file, in 10^6 bytes"),
        _plain("--max-inference-time-ms", kind=POSITIVE, text="Longest p95 latency of one image on one thread"),
    ),
    cloup.option_group(
        "Release",
        cloup.option(
            "--served-format",
            type=click.Choice(("onnx", "torchscript")),
            default="onnx",
            show_default=True,
            help="The file that Triton serves",
        ),
        model_repository,
        cloup.option(
            "--release-name", metavar="NAME", help="Name in the repository [default: <model id>-<dataset id>]"
        ),
        sign_key,
        cloup.option("--no-publish", is_flag=True, help="Judge and validate, but publish nothing"),
        cloup.option(
            "--validate-with",
            type=click.Choice(ENGINES),
            default="embedded",
            show_default=True,
            help="Which Triton is to prove it; auto: the stock image where it lies here, else the embedded one",
        ),
    ),
    cloup.option_group("Output", quiet, debug),
)

BENCH_TRAINING = (
    cloup.option("--quick", is_flag=True, help="Time only some steps of the usual example, and extrapolate"),
    cloup.option("--seeds", type=COUNT, help="Trainings of each kind [default: 10; with --quick 3]"),
    cloup.option("--epochs", type=COUNT, help="Epochs of the usual example [default: 14, as published]"),
    cloup.option("--dataset-id", default="mnist_v1", show_default=True, help="Data set"),
    data_dir,
    cloup.option("--json", "json_file", type=FILE, help="Write all figures to this file"),
    cloup.option("--plot", "plot_file", type=FILE, help="Draw accuracy over seconds into this PNG file"),
    quiet,
    debug,
)

BENCH_SERVING = (
    cloup.option("--name", help="Released name [default: the one published last]"),
    model_repository,
    cloup.option(
        "--url",
        metavar="URL",
        help="A running server: host:port, or grpc://host:port [default: start the embedded one]",
    ),
    cloup.option(
        "--protocol", type=click.Choice(("http", "grpc")), help="To ask a server that is started [default: http]"
    ),
    cloup.option(
        "--concurrency",
        type=COUNT,
        multiple=True,
        help="Requests at once; may be repeated [default: 1, 2, 4, 8 and 16]",
    ),
    cloup.option(
        "--batch-size", type=click.IntRange(1, 128), default=1, show_default=True, help="Images in each request"
    ),
    cloup.option(
        "--seconds", type=POSITIVE, default=1.0, show_default=True, help="Of each side at each concurrency in a round"
    ),
    cloup.option("--rounds", type=COUNT, default=5, show_default=True, help="Medians are over so many"),
    cloup.option("--json", "json_file", type=FILE, help="Write all figures to this file"),
    cloup.option("--plot", "plot_file", type=FILE, help="Draw throughput and p99 over concurrency into this PNG file"),
    quiet,
    debug,
)
