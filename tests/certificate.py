"""A self-signed certificate for a server on this machine, made on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.requirements import need


def self_signed(folder: Path) -> tuple[str, str]:
    """Return the paths of certificate and key, for localhost and 127.0.0.1."""
    cert, key = str(folder / "server.pem"), str(folder / "server.key")
    command = [
        *(need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", "/CN=server", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", key, "-out", cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
