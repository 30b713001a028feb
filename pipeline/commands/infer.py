"""`bin/infer`."""

from pathlib import Path

import click
import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console

_COUNT = 5


@cloup.command("infer", context_settings=CONTEXT)
@cloup.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE ...]")
@cloup.option("--name", type=options.NAME, help="Released name [default: the one published last]")
@options.model_repository
@options.data_dir
@cloup.option(
    "--url",
    default="127.0.0.1:8000",
    show_default=True,
    help="Server to ask first: HOST:PORT or http:// for HTTP, grpc:// for gRPC",
)
@cloup.option(
    "--checkpoint",
    type=options.OLD_FILE,
    metavar="FILE",
    help="Ask the weights in this checkpoint of bin/train, and no server",
)
@cloup.option("--invert", is_flag=True, help="Exchange light and dark of each FILE, as for a digit on white paper")
@cloup.option("--count", type=options.COUNT, help=f"Test images to ask for [default: {_COUNT}]")
@cloup.option("--seed", type=options.NOT_NEGATIVE_COUNT, help="Draw the same images again [default: others each time]")
@cloup.option("--results-dir", default="results", show_default=True, metavar="DIR", help="Where the pictures go")
@options.quiet
@options.debug
@with_console
def command(
    quiet: bool,
    files: tuple[Path, ...],
    name: str | None,
    model_repository: str | None,
    data_dir: str | None,
    url: str,
    checkpoint: Path | None,
    invert: bool,
    count: int | None,
    seed: int | None,
    results_dir: str,
) -> None:
    """Classify pictures, or random test images, by a running server or, where there is none, by the released file.

    The pictures that it draws take the place of those of the call before.

    FILE is a PNG, a JPEG or another picture of any size: its middle square is scaled to what the network takes.

    \b
    Examples: bin/infer
              bin/infer photo.jpg scan.png --url grpc://gpu-host:8001 --name resnet18_v1-flowers
              bin/infer digit.jpg --invert
    """
    if files and (count or seed is not None):
        raise click.UsageError("--count and --seed draw test images: leave them out where FILE is given.")
    if invert and not files:
        raise click.UsageError("--invert is for pictures: name a FILE.")
    if checkpoint and (files or name):
        raise click.UsageError(
            "--checkpoint is asked about test images, as nothing released is: leave out FILE and --name."
        )

    from pipeline import inference, settings
    from pipeline.triton.store import open_store

    store, results = open_store(settings.model_repository(model_repository)), Path(results_dir)
    data = settings.folder(data_dir, "data_dir")
    if files:
        answers = inference.infer_files(store, files, results, name=name, url=url, invert=invert)
    elif checkpoint:
        answers = inference.infer_by_checkpoint(checkpoint, data, results, count=count or _COUNT, seed=seed)
    else:
        answers = inference.infer_test_images(
            store, data, results, name=name, url=url, count=count or _COUNT, seed=seed
        )
    if not quiet:
        print(answers)
