"""How the server of a run shows that it is the run's own, to who can read the key in the run's folder."""

from __future__ import annotations

import hmac


def proof(key: str, run_id: str, nonce: str) -> str:
    """Return HMAC-SHA256 over run id and nonce, as hexadecimal digits: good for this nonce alone, and says nothing of
    any token.

    >>> len(proof("key", "digits-3f9a0c", "00" * 16))
    64
    """
    return hmac.new(key.encode(), f"monitor.proof\n{run_id}\n{nonce}".encode(), "sha256").hexdigest()
