"""`dlscale serve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from dlscale.cli.options import echo, open_workspace, workspace_option
from dlscale.errors import SpecError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; any other address needs --token-file.")
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 is a free one.")
@click.option("--cluster", metavar="C", help="Where all jobs run: local, threads or tcp://host:port [as each job says].")
@click.option("--allow", multiple=True, metavar="ROOT", help="A folder, or a beginning of URLs, that jobs may name [this folder].")
@click.option("--name", "names", multiple=True, metavar="HOST", help="Another host name by which the server is asked.")
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="Who may do what, by the hashes of tokens.")
@click.option("--new-token", metavar="NAME:SCOPE", help="Print a new token (read, submit, admin), add its hash to FILE, and end.")
@click.option("--keep-days", type=float, metavar="DAYS", help="Remove jobs that are done so long after they began [never].")
@click.option("--keep-jobs", type=click.IntRange(0), metavar="N", help="Remove jobs that are done, but for the N newest [none].")
@workspace_option
def serve(
    host: str,
    port: int,
    cluster: str | None,
    allow: tuple[str, ...],
    names: tuple[str, ...],
    token_file: Path | None,
    new_token: str | None,
    keep_days: float | None,
    keep_jobs: int | None,
    workspace: str | None,
) -> None:
    """Serve the workspace's jobs: an HTTP API, and a page to submit and watch them."""
    if new_token is not None:
        from dlscale.service.tokens import add_token

        if token_file is None:
            raise click.UsageError("--new-token goes with --token-file.")
        echo(add_token(token_file, new_token))
        return
    try:
        from dlscale.service.server import serve as serve_until_stopped
    except ImportError as error:
        raise SpecError(f"dlscale serve needs the package {error.name}; install it with `pip install 'dlscale[serve]'`.") from error
    from dlscale.service.retention import Retention
    from dlscale.service.settings import Settings

    root = open_workspace(workspace)
    root.require_answers()
    settings = Settings.checked(root, host=host, port=port, allow=allow, cluster=cluster, token_file=token_file, names=names)
    settings = replace(settings, retention=Retention(keep_days, keep_jobs))
    who = "you alone" if settings.tokens is None else f"the tokens of {token_file}"
    serve_until_stopped(settings, ready=f"dlscale serves {root.place} at {{url}} for {who}; Ctrl-C ends it, and no job.")
