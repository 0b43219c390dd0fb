"""How the server of a run shows that it is the run's own, to who can read the key in the run's folder."""

from __future__ import annotations

import hmac


def proof(key: str, run_id: str, nonce: str, port: int) -> str:
    """Return HMAC-SHA256 over run id, nonce and the server's port, as hexadecimal digits. It is good for this nonce
    alone, says nothing of any token, and cannot be relayed from a server at another port.

    >>> len(proof("key", "digits-3f9a0c", "00" * 16, 9477))
    64
    """
    return hmac.new(key.encode(), f"monitor.proof\n{run_id}\n{nonce}\n{port}".encode(), "sha256").hexdigest()
