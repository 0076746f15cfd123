"""Certificates for tests: made by the openssl program, once per process."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

NAMES = "DNS:localhost,DNS:one.example,IP:127.0.0.1"
EXTENSIONS = {
    "ca": "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n",
    "server": f"subjectAltName={NAMES}\nauthorityKeyIdentifier=keyid\n",
    "other": "subjectAltName=DNS:two.example\nauthorityKeyIdentifier=keyid\n",
    "client": "extendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n",
}


@functools.cache
def directory() -> Path:
    """Where they are: NAME.pem and NAME.key for "ca", "server", "other" (two.example) and "client"."""
    made = Path(tempfile.mkdtemp(prefix="fibers-certificates-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    for name, extensions in EXTENSIONS.items():
        key, csr, pem, wanted = (made / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
        wanted.write_text(extensions)
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", csr)
        own, issued = ("-signkey", key), ("-CA", made / "ca.pem", "-CAkey", made / "ca.key", "-CAcreateserial")
        signer = own if name == "ca" else issued
        openssl("x509", "-req", "-days", "2", "-in", csr, *signer, "-extfile", wanted, "-out", pem)
    return made


def openssl(*args: object) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def server_context(name: str = "server") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory() / f"{name}.pem", directory() / f"{name}.key")
    return context


def client_context(*, certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(directory() / "ca.pem"))
    if certificate:
        context.load_cert_chain(directory() / "client.pem", directory() / "client.key")
    return context
