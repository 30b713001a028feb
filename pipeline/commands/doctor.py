"""`bin/doctor`."""

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console
from pipeline.errors import ServiceError


@cloup.command("doctor", context_settings=CONTEXT)
@options.model_repository
@options.data_dir
@cloup.option("--json", "as_json", is_flag=True, help="Answer as JSON, of a shape that stays")
@options.quiet
@options.debug
@with_console
def command(quiet: bool, model_repository: str | None, data_dir: str | None, as_json: bool) -> None:
    """Say what this machine has for making and serving a release, and what to do about what it lacks."""
    from pipeline import doctor, settings

    place = doctor.Place(settings.folder(data_dir, "data_dir"), settings.model_repository(model_repository))
    diagnosis = doctor.examine(place)
    if as_json:
        print(diagnosis.model_dump_json(indent=2))
    elif not quiet:
        for finding in diagnosis.findings:
            print(f"{finding.state:<8} {finding.subject:<16} {finding.found}")
            if finding.advice:
                print(f"{'':<25} {finding.advice}")
    if diagnosis.missing:
        raise ServiceError(
            f"a release cannot be made and served here: {', '.join(diagnosis.missing)}; bin/doctor says what to do"
        )
