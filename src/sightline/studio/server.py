"""Run the studio's server on this machine, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from sightline.callbacks import Callback
from sightline.errors import UsageError, require

if TYPE_CHECKING:
    from sightline.api.dataset import Dataset
    from sightline.api.run import Run
    from sightline.studio.network import NetworkAccess

HOST = "127.0.0.1"
LOCAL_HOSTS = {HOST, "localhost"}
ANY = {"0.0.0.0", "::", ""}  # noqa: S104  # all interfaces
BACKLOG = 128  # connections waiting to be accepted


@dataclass(frozen=True, slots=True)
class Addresses:
    """The page's address for this machine, and for other devices on the network if the studio listens there."""

    local: str
    network: str | None = None


def run_studio(  # noqa: PLR0913  # one keyword argument for each option of the command
    data: Dataset | Run,
    *,
    patch: Path | None = None,
    compare: Sequence[Run] = (),
    classes: Sequence[str] = (),
    runs: Path | None = None,
    host: str = HOST,
    port: int = 0,
    allowed_hosts: Sequence[str] = (),
    ssl_certfile: Path | None = None,
    ssl_keyfile: Path | None = None,
    raw_csv: bool = False,
    show: Callable[[Addresses], None] = print,
    callback: Callback | None = None,
) -> None:
    """Serve the page of a data set or a run on this machine until Ctrl-C or SIGTERM.

    On an address that other devices can reach, whoever opens `Addresses.network`, which contains a random token, may
    use the studio.

    Args:
        data: The images; a run's images come with their splits, and with predictions for the evaluated splits.
        patch: The file of corrections, by default ``NAME-fixes.jsonl`` in the current folder. Existing lines are kept.
        compare: Other runs, to compare a run with.
        classes: Classes to label images with, besides those that the images have; more can be added on the page.
        runs: The folder of the runs that the page trains and shows, by default ``runs``, or the folder of the run.
        host: The address to listen on; ``0.0.0.0`` for all interfaces.
        port: The port; 0 picks a free one.
        allowed_hosts: Names of this machine on the network, besides its host name.
        ssl_certfile: A certificate chain in PEM, to encrypt connections.
        ssl_keyfile: Its private key, if in another file.
        raw_csv: Whether the page's CSV table keeps text that a spreadsheet would read as a formula unchanged, without
            an apostrophe.
        show: Called with the addresses of the page.
        callback: Receives the progress of reading the images.

    Raises:
        DataError: If the images cannot be read, or the patch does not fit them.
        OutputError: If another studio edits the same patch.
        UsageError: If the address cannot be bound, the certificate cannot be used, or `allowed_hosts` has invalid names
            or is set although the studio does not listen beyond this machine.
        MissingExtraError: If the packages of the extra are not installed.
    """
    is_local = host in LOCAL_HOSTS
    for package in ("starlette", "uvicorn", *(() if is_local else ("segno",))):
        require(package, "The studio")
    if is_local and allowed_hosts:
        raise UsageError("--allowed-host is for a studio that others can reach: give an address with --host, too.")
    import uvicorn

    from sightline.serve.addressing import check_host
    from sightline.serve.certificate import read_certificate
    from sightline.serve.listening import bind
    from sightline.studio.app import create_app
    from sightline.studio.contents import open_studio
    from sightline.studio.network import make_access
    from sightline.studio.protection import make_token

    for name in allowed_hosts:
        check_host(name)
    certificate = read_certificate(ssl_certfile, ssl_keyfile)
    scheme = "http" if certificate is None else "https"
    with bind(socket.socket, host, port) as listener:
        bound = int(listener.getsockname()[1])
        access = None if is_local else make_access(host, bound, make_token(), allowed_hosts, scheme=scheme)
        with open_studio(data, patch, callback, compare, classes, runs, raw_csv=raw_csv) as studio:
            config = uvicorn.Config(
                create_app(studio, access), log_config=None, access_log=False, proxy_headers=False,
                timeout_graceful_shutdown=2,
            )  # fmt: skip
            config.load()
            config.ssl = None if certificate is None else certificate.context
            server = uvicorn.Server(config)

            def end() -> None:
                server.should_exit = True  # exits with 0
                if studio.training is not None:
                    studio.training.closing.set()  # the server would wait for pages that follow a training

            server.handle_exit = lambda *_: end()  # type: ignore[method-assign]
            listener.listen(BACKLOG)
            show(Addresses(f"{scheme}://{host}:{bound}") if access is None else _list_addresses(access, host))
            server.run(sockets=[listener])


def _list_addresses(access: NetworkAccess, host: str) -> Addresses:
    """Return the addresses of a studio on the network; browsers allow this machine's camera only at the local one."""
    parts = urlsplit(access.address)
    is_reachable = host in ANY and parts.scheme == "http"  # a certificate is valid for a name only
    local = urlunsplit(parts._replace(netloc=f"{HOST}:{parts.port}")) if is_reachable else access.address
    return Addresses(local, access.address)
