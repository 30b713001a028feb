"""`bin/infer`."""

from pathlib import Path

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console


@cloup.command("infer", context_settings=CONTEXT)
@cloup.option("--name", help="Released name [default: the one published last]")
@options.model_repository
@options.data_dir
@cloup.option("--url", default="127.0.0.1:8000", show_default=True, help="HTTP address of a server to ask first")
@cloup.option("--count", type=options.COUNT, default=5, show_default=True, help="Test images to ask for")
@cloup.option("--seed", type=options.NOT_NEGATIVE_COUNT, help="Draw the same images again [default: others each time]")
@cloup.option("--results-dir", default="results", show_default=True, metavar="DIR", help="Where the pictures go")
@options.quiet
@options.debug
@with_console
def command(
    quiet: bool,
    name: str | None,
    model_repository: str | None,
    data_dir: str | None,
    url: str,
    count: int,
    seed: int | None,
    results_dir: str,
) -> None:
    """Classify random test images by a running server or, where there is none, by the released file."""
    from pipeline import inference, settings
    from pipeline.triton.store import open_store

    answers = inference.infer(
        open_store(settings.model_repository(model_repository)),
        settings.folder(data_dir, "data_dir"),
        Path(results_dir),
        name=name,
        url=url,
        count=count,
        seed=seed,
    )
    if not quiet:
        print(answers)
