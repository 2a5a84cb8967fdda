"""Certificates made with openssl: an authority, and servers' certificates for 127.0.0.1."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.servers.process import find_binary


class Authority:
    """A private authority in `directory`; `ca` is its PEM file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca = directory / "ca.pem"
        self._key = directory / "ca.key"
        directory.mkdir(parents=True, exist_ok=True)
        new = ["req", "-x509", *self._new_key(self._key), "-out", str(self.ca), "-days", "30", "-subj", "/CN=test authority"]
        self._openssl(*new, "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    @staticmethod
    def _new_key(path: Path) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]

    @staticmethod
    def _openssl(*argv: str) -> None:
        subprocess.run([find_binary("openssl", "openssl"), *argv], check=True, capture_output=True)

    def issue(self, name: str, *, days: int = 10, alternative: str = "IP:127.0.0.1") -> ssl.SSLContext:
        """Return a server's TLS context with a certificate that lasts `days`; `alternative` is whom it is for."""
        key, request, certificate, extensions = (self._directory / f"{name}.{suffix}" for suffix in ("key", "csr", "pem", "ext"))
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        self._openssl("req", "-new", *self._new_key(key), "-out", str(request), "-subj", f"/CN={name}")
        sign = ["x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial"]
        self._openssl(*sign, "-out", str(certificate), "-days", str(days), "-extfile", str(extensions))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context
