"""The certificate of a server: its files, which are read again when they change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from sightline.errors import UsageError

_LOG = logging.getLogger(__name__)


class Certificate:
    """A certificate chain and its private key, in PEM files; the key may be in the first.

    Attributes:
        context: What a server encrypts its connections with: TLS 1.2 or later.
    """

    def __init__(self, certfile: Path, keyfile: Path | None = None) -> None:
        """Raises `UsageError` if the files cannot be used."""
        self._certfile, self._keyfile = certfile, keyfile
        self._files = (certfile,) if keyfile is None else (certfile, keyfile)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._signature = self._read_signature()
        try:
            self._load(self.context)
        except (OSError, ValueError) as error:  # also of ssl
            raise UsageError(
                f"The certificate {' with the key '.join(map(str, self._files))} cannot be used: {_explain(error)}. "
                "Expected PEM files of a certificate and of its private key without a password."
            ) from error

    def refresh(self) -> None:
        """Use the files for new connections if they have changed; files that cannot be used are logged, once."""
        signature = self._read_signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a half that does not fit would spoil the other one
            self._load(self.context)
        except (OSError, ValueError) as error:
            _LOG.error(
                "The new certificate %s cannot be used: %s. The server keeps the old one.",
                self._files[0], _explain(error),
            )  # fmt: skip
        else:
            _LOG.info("The certificate %s was read again.", self._files[0])

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._certfile, self._keyfile, _refuse_password)

    def _read_signature(self) -> list[Any]:
        signature: list[Any] = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                signature.append(None)
            else:
                signature.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return signature


def read_certificate(certfile: Path | None, keyfile: Path | None) -> Certificate | None:
    """Return the certificate of these files, None without any; raises `UsageError` if they cannot be used."""
    if certfile is None and keyfile is not None:
        raise UsageError("A key needs its certificate: give it with --ssl-certfile.")
    return None if certfile is None else Certificate(certfile, keyfile)


def _refuse_password() -> str:
    """Return no password, so that OpenSSL does not ask for one on the terminal."""
    return ""


def _explain(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).lower().replace("_", " ") if isinstance(error, ssl.SSLError) else str(reason)
