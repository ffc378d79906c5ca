"""`halfreel pull`: fetches models, the one command that does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.printable import printable
from halfreel_client.pull.default_models import DEFAULT_MODELS, licence_of, repo_id_of
from halfreel_client.pull.selection import NoSafetensorsError

if TYPE_CHECKING:
    from halfreel_client.pull.repository import Repository

# Beside the files themselves something must stay free for those who use the disk.
_SPARE_BYTES = 256 * 1024 * 1024
MODELS_TEXT = "Licences: " + "; ".join(f"{model.repo_id} ({model.name}): {model.licence}" for model in DEFAULT_MODELS)


def pull_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="llm, video, keyframe, or a hub's id. Default: the first three."),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit; of one model alone. Default: main.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell sizes and licences, and fetch nothing.")] = False,
) -> None:
    """Fetches large models into the hub's local cache, where the servers find them; servers never download.

    Only safetensors, configurations and tokenizers are fetched, and each is checked. A broken-off pull goes on where it
    ended.
    """
    names = models or [model.name for model in DEFAULT_MODELS]
    if revision and len(names) != 1:
        raise CommandError("--revision goes with one model; name it", ExitCode.USAGE)
    # Only here: the hub's library takes long to import, and no other command needs it.
    from halfreel_client.pull import repository as hub

    repositories = []
    for name in names:
        repo_id = repo_id_of(name)
        with telling_hub_errors(repo_id):
            repository = hub.look_up(repo_id, revision or hub.DEFAULT_REVISION)
        repositories.append(repository)
        typer.echo(
            f"{repo_id} at {repository.commit[:12]}: {len(repository.files)} files, "
            f"{bytes_text(repository.size_bytes)}, {bytes_text(repository.missing_bytes())} to fetch\n"
            f"  licence: {licence_of(repo_id)} ({hub.page_of(repo_id)})"
        )
    _check_disk(sum(repository.missing_bytes() for repository in repositories), hub.free_bytes())
    if dry_run:
        return
    for repository in repositories:
        with telling_hub_errors(repository.repo_id), _progress(repository) as on_file:
            for file in repository.files:
                repository.fetch(file, on_file(file.name))
        typer.echo(f"{repository.repo_id}: complete and checked")


@contextmanager
def telling_hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what the hub refuses into one line that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from halfreel_client.pull.large_file import DamagedFileError
    from halfreel_client.pull.repository import MovedError, page_of

    try:
        yield
    except GatedRepoError:
        raise CommandError(
            f"{repo_id} is given out only to those who accept its licence: log in and accept it at {page_of(repo_id)}, "
            "then run `hf auth login` here (or set HF_TOKEN), and pull again",
            ExitCode.FAILED,
        ) from None
    except RepositoryNotFoundError:
        raise CommandError(
            f"the hub has no model {repo_id!r}, or shows it only to its owners: check the id, or run `hf auth login`",
            ExitCode.NOT_FOUND,
        ) from None
    except RevisionNotFoundError:
        raise CommandError(
            f"{repo_id} has no such revision; see {page_of(repo_id)}/commits", ExitCode.NOT_FOUND
        ) from None
    except HFValidationError as error:
        raise CommandError(f"{repo_id!r} is no id of a model: {error}", ExitCode.USAGE) from None
    except OfflineModeIsEnabled:
        raise CommandError("HF_HUB_OFFLINE is set: unset it to pull", ExitCode.UNREACHABLE) from None
    except HTTPError as error:
        reason = str(error).strip().splitlines()
        raise CommandError(
            f"{repo_id}: the hub did not deliver ({reason[0] if reason else type(error).__name__}); "
            "pull again to go on where it ended",
            ExitCode.UNREACHABLE,
        ) from None
    except NoSafetensorsError:
        raise CommandError(
            f"{repo_id} has no weights as safetensors, and no other kind is ever opened here", ExitCode.FAILED
        ) from None
    except DamagedFileError:
        raise CommandError(
            f"{repo_id}: a file is not what the hub says it is, and was removed; pull again", ExitCode.FAILED
        ) from None
    except MovedError:
        raise CommandError(f"{repo_id} was changed by its owners meanwhile; pull again", ExitCode.FAILED) from None


def _check_disk(missing_bytes: int, free_bytes: int) -> None:
    if missing_bytes and missing_bytes + _SPARE_BYTES > free_bytes:
        raise CommandError(
            f"the disk has {bytes_text(free_bytes)} free; {bytes_text(missing_bytes + _SPARE_BYTES)} are needed: "
            "make room, or set HF_HOME to a folder on another disk",
            ExitCode.EXHAUSTED,
        )


@contextmanager
def _progress(repository: Repository) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """A bar on a terminal, else a line for each file; gives what counts the bytes of a file."""
    if not sys.stdout.isatty():

        def tell(name: str) -> Callable[[int], None]:
            typer.echo(f"  {printable(name)}")
            return lambda count: None

        yield tell
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(highlight=False)) as progress:
        task = progress.add_task(repository.repo_id, total=repository.size_bytes)

        def show(name: str) -> Callable[[int], None]:
            progress.update(task, description=printable(name)[-40:])
            return lambda count: progress.advance(task, count)

        yield show
