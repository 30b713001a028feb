"""`bin/evaluate`."""

from pathlib import Path

import click
import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console


@cloup.command("evaluate", context_settings=CONTEXT)
@cloup.argument("target", required=False, metavar="[NAME[:V]]", type=options.NAMED)
@cloup.option("--run", metavar="DIR", help="Evaluate what this run of bin/train exported, else its checkpoint")
@cloup.option(
    "--checkpoint", type=options.OLD_FILE, metavar="FILE", help="Evaluate the weights in this checkpoint of bin/train"
)
@cloup.option("--url", help="Evaluate what this server answers: HOST:PORT or http:// for HTTP, grpc:// for gRPC")
@options.model_repository
@cloup.option("--dataset-id", help="Test set [default: of the data set that the network was trained on]")
@options.data_dir
@cloup.option(
    "--seed",
    type=options.NOT_NEGATIVE_COUNT,
    help="Of the run that drew test images from an image folder [default: its own where it is known, else 1]",
)
@cloup.option(
    "--output", type=options.FILE, default="eval_results.json", show_default=True, help="Where the figures are written"
)
@options.quiet
@options.debug
@with_console
def command(
    quiet: bool,
    target: options.Named | None,
    run: str | None,
    checkpoint: Path | None,
    url: str | None,
    model_repository: str | None,
    dataset_id: str | None,
    data_dir: str | None,
    seed: int | None,
    output: Path,
) -> None:
    """Measure loss and accuracy on a whole test set: of a released version, a run, a checkpoint or a running server.

    NAME is a released one, V its version. Without NAME it is what was published last, without V the live version.

    \b
    Examples: bin/evaluate mnist_cnn_v1-mnist_v1:3
              bin/evaluate --run output_20260131_120000
              bin/evaluate --url grpc://gpu-host:8001 mnist_cnn_v1-mnist_v1 --dataset-id mnist_v1
    """
    given = [
        name
        for name, value in {"--run": run, "--checkpoint": checkpoint, "--url": url, "NAME": target}.items()
        if value
    ]
    if len(given) > 1 and given != ["--url", "NAME"]:
        raise click.UsageError(f"{given[0]} and {given[1]} name two things to evaluate: give one of them.")

    from pipeline import evaluation, settings
    from pipeline.triton.store import open_store

    results = evaluation.evaluate(
        open_store(settings.model_repository(model_repository)),
        target=target,
        run=Path(run) if run else None,
        checkpoint=checkpoint,
        url=url,
        dataset_id=dataset_id,
        data_dir=settings.folder(data_dir, "data_dir"),
        seed=seed,
    )
    results.save(output)
    if not quiet:
        print(evaluation.table(results))
        print(f"  written to  {output}")
