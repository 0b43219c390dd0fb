"""The commands of a run as far as the training process has reported them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from monitor._records import MAX_COMMANDS_KEPT, CommandRecord


class CommandBook:
    """Keep the newest commands, and count outcomes. One thread writes, others read.

    >>> book = CommandBook()
    >>> book.put(CommandRecord("a1", "reduce", "api", 0.0, 0.5))
    >>> [record.id for record in book.waiting()]
    ['a1']
    """

    def __init__(self) -> None:
        self._kept: dict[str, CommandRecord] = {}
        self.totals: Mapping[tuple[str, str, str], int] = {}
        self.last_applied: Mapping[str, float] = {}

    def restore(
        self,
        totals: Mapping[tuple[str, str, str], int],
        last_applied: Mapping[str, float],
        records: Iterable[CommandRecord],
    ) -> None:
        """Take over what an earlier watcher was told."""
        self._kept = {record.id: record for record in records}
        self.totals, self.last_applied = totals, last_applied

    def put(self, record: CommandRecord) -> None:
        """Take a command that was accepted, or its outcome. An outcome that came first stands, and counts once."""
        known = self._kept.get(record.id)
        if known is not None and (record.status == "pending" or known.status != "pending"):
            return
        kept = {**self._kept, record.id: record}
        while len(kept) > MAX_COMMANDS_KEPT:
            del kept[next(iter(kept))]
        self._kept = kept
        if record.status == "pending":
            return
        key = (record.action, record.source, record.status)
        self.totals = {**self.totals, key: self.totals.get(key, 0) + 1}
        if record.status == "applied" and record.finished is not None:
            self.last_applied = {**self.last_applied, record.action: record.finished}

    def get(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by its id."""
        return self._kept.get(id)

    def waiting(self) -> Sequence[CommandRecord]:
        """Return the commands that have no outcome yet, oldest first."""
        return tuple(record for record in self._kept.values() if record.status == "pending")
