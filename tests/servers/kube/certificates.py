"""The authorities and certificates of a cluster: who may be an API server, a kubelet, an administrator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.servers.certificates import Authority


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class ClusterAuthority(Authority):
    """An authority that issues certificates for servers on loopback and for clients with groups."""

    def pair(self, name: str, *, groups: tuple[str, ...] = (), alternative: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
        """Return a certificate for `name`, good for both ends of a connection; Kubernetes reads `groups` from its O fields."""
        file = name.replace(":", "-")
        key, request, certificate, extensions = (self._directory / f"{file}.{suffix}" for suffix in ("key", "csr", "pem", "ext"))
        extensions.write_text(f"subjectAltName={alternative}\nextendedKeyUsage=serverAuth,clientAuth\n")
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        self._openssl("req", "-new", *self._new_key(key), "-out", str(request), "-subj", subject)
        sign = ["x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial"]
        self._openssl(*sign, "-out", str(certificate), "-days", "30", "-extfile", str(extensions))
        return Pair(certificate, key)


def signing_key(path: Path) -> Path:
    """Make the key that service account tokens are signed with."""
    Authority._openssl("genrsa", "-out", str(path), "2048")
    return path
