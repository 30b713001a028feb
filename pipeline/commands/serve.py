"""`bin/serve`."""

from pathlib import Path

import click
import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console


@cloup.command("serve", context_settings=CONTEXT)
@options.model_repository
@cloup.option("--engine", type=click.Choice(("embedded",)), default="embedded", show_default=True, help="Which Triton")
@cloup.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on")
@cloup.option("--http-port", type=options.PORT, default=8000, show_default=True, help="0: a free one")
@cloup.option("--grpc-port", type=options.PORT, default=8001, show_default=True, help="0: a free one")
@cloup.option("--metrics-port", type=options.PORT, default=8002, show_default=True, help="0: a free one")
@cloup.option("--log-file", metavar="FILE", help="Where Triton's log goes [default: it is not kept]")
@options.quiet
@options.debug
@with_console
def command(
    quiet: bool,
    model_repository: str | None,
    engine: str,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    log_file: str | None,
) -> None:
    """Serve the model repository; a version published meanwhile is live within seconds."""
    from pipeline import serving, settings

    serving.serve(
        settings.model_repository(model_repository),
        host=host,
        ports=(http_port, grpc_port, metrics_port),
        log_file=Path(log_file) if log_file else None,
        say=(lambda text: None) if quiet else (lambda text: print(text, flush=True)),
    )
