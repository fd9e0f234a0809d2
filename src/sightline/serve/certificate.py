"""The TLS certificate of a server, reloaded when its files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from sightline.errors import UsageError

KINDS = ((b"CERTIFICATE-", "certificate"), (b"PRIVATE KEY-", "private key"))  # PEM markers of each kind
_LOG = logging.getLogger(__name__)


class Certificate:
    """A certificate chain and its private key, in PEM files; the key may be in the first.

    Attributes:
        context: The context that encrypts a server's connections, with TLS 1.2 or later.
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
        except (OSError, ValueError) as error:  # ssl raises either
            files = " with the key ".join(map(str, self._files))
            raise UsageError(
                f"The certificate {files} cannot be used: {self._explain(error)}. "
                "Expected PEM files of a certificate and of its private key without a password."
            ) from error

    def refresh(self) -> None:
        """Use the files for new connections if they have changed; log files that cannot be used, once."""
        signature = self._read_signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a mismatched pair would break the other context
            self._load(self.context)
        except (OSError, ValueError) as error:
            _LOG.error(
                "The new certificate %s cannot be used: %s. The server keeps the old one.",
                self._files[0], self._explain(error),
            )  # fmt: skip
        else:
            _LOG.info("The certificate %s was read again.", self._files[0])

    def _load(self, context: ssl.SSLContext) -> None:
        # no password, so that OpenSSL does not prompt for one on the terminal
        context.load_cert_chain(self._certfile, self._keyfile, lambda: "")

    def _explain(self, error: OSError | ValueError) -> str:
        """Return what is wrong, naming the file where OpenSSL does not."""
        for path, words in zip((self._files[0], self._files[-1]), KINDS, strict=True):
            try:
                content = path.read_bytes()
            except OSError as unread:
                return f"{path}: {unread.strerror or unread}"
            if words[0] not in content:
                return f"{path} has no {words[1]}"
            if b"ENCRYPTED" in content and words is KINDS[1]:
                return f"the key in {path} has a password"
        return str(getattr(error, "reason", None) or error).lower().replace("_", " ")

    def _read_signature(self) -> list[Any]:
        signature: list[Any] = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                signature.append(None)
            else:
                signature.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
        return signature


def read_certificate(certfile: Path | None, keyfile: Path | None) -> Certificate | None:
    """Return the certificate from these files, or None without any; raise `UsageError` if they cannot be used."""
    if certfile is None and keyfile is not None:
        raise UsageError("A key needs its certificate: give it with --ssl-certfile.")
    return None if certfile is None else Certificate(certfile, keyfile)
