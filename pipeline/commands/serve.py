"""`bin/serve`."""

from pathlib import Path
from typing import Any, Literal

import click
import cloup

from pipeline import options
from pipeline.commands import CONTEXT, declares, with_console
from pipeline.errors import InputError


@cloup.command("serve", context_settings=CONTEXT)
@options.model_repository
@cloup.option(
    "--engine",
    type=click.Choice(options.ENGINES),
    default="auto",
    show_default=True,
    help="Which Triton: the stock image in Docker or Podman, or the embedded one; auto: the image where it lies here",
)
@cloup.option("--image", metavar="IMAGE", help="Another stock image than the one that is pinned here")
@cloup.option(
    "--control",
    type=click.Choice(("poll", "explicit")),
    default="poll",
    show_default=True,
    help="Take up a new version by looking for one, or only when told by bin/zoo ... --reload",
)
@cloup.option("--poll-seconds", type=options.COUNT, default=1, show_default=True, help="How often it looks")
@cloup.option(
    "--ready-seconds",
    type=options.POSITIVE,
    default=120,
    show_default=True,
    help="Give up where it does not answer by then",
)
@cloup.option(
    "--require-signature",
    is_flag=True,
    help="Serve only what is signed by --key or --identity; the rest is refused by name",
)
@declares(options.SIGNATORIES)
@cloup.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on")
@cloup.option("--http-port", type=options.PORT, default=8000, show_default=True, help="0: a free one")
@cloup.option("--grpc-port", type=options.PORT, default=8001, show_default=True, help="0: a free one")
@cloup.option("--metrics-port", type=options.PORT, default=8002, show_default=True, help="0: a free one")
@cloup.option(
    "--memory",
    metavar="SIZE",
    callback=options.size,
    help="Most memory that a container may use, as 4g [default: no limit]",
)
@cloup.option("--cpus", type=options.POSITIVE, help="Most processors that a container may use [default: all]")
@cloup.option("--log-file", metavar="FILE", help="Where Triton's log goes [default: it is not kept]")
@options.quiet
@options.debug
@with_console
def command(
    quiet: bool,
    model_repository: str | None,
    engine: Literal["auto", "embedded", "docker"],
    image: str | None,
    control: Literal["poll", "explicit"],
    poll_seconds: int,
    ready_seconds: float,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    memory: str | None,
    cpus: float | None,
    log_file: str | None,
    require_signature: bool,
    **whom: Any,
) -> None:
    """Serve the model repository; a version published meanwhile is live within seconds."""
    from pipeline import serving, settings
    from pipeline.triton import signing
    from pipeline.triton.container import IMAGE
    from pipeline.triton.server import ServerOptions

    signatories = signing.signatories(**whom)
    if require_signature != (signatories is not None):
        raise InputError("--require-signature and --key FILE (or --identity) belong together: give both or neither")
    serving.serve(
        ServerOptions(
            repository=settings.model_repository(model_repository),
            log_file=Path(log_file) if log_file else None,
            control=control,
            # One bad model must not keep the others from being served.
            exit_on_error=False,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            poll_seconds=poll_seconds,
            load=("*",) if control == "explicit" else (),
        ),
        serving.choose(engine, image or IMAGE, memory, cpus),
        ready_seconds,
        say=(lambda text: None) if quiet else (lambda text: print(text, flush=True)),
        signatories=signatories,
    )
