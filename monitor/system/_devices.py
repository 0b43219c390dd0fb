"""The card behind ``cuda:0``: the identity of the torch devices, as pure functions over UUIDs.

CUDA numbers the devices by ``CUDA_VISIBLE_DEVICES`` and by its own order, NVML by PCI bus: only a UUID names a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GPU_PREFIX = "GPU-"
MIG_PREFIX = "MIG-"


@dataclass(frozen=True, slots=True)
class Card:
    """A physical GPU at its NVML index; the UUID is empty where NVML does not give it. ``instances`` are MIG UUIDs."""

    uuid: str
    is_mig: bool = False
    instances: tuple[str, ...] = ()

    @property
    def default_uuid(self) -> str:
        """Name what CUDA shows of the card: the card itself, or in MIG mode its first instance, if it has one."""
        if self.is_mig:
            return self.instances[0] if self.instances else ""
        return self.uuid


def visible_uuids(variable: str | None, cards: Sequence[Card]) -> tuple[str, ...]:
    """List the UUIDs of the torch devices from the value of ``CUDA_VISIBLE_DEVICES``, as CUDA reads it.

    Indices, unique prefixes of ``GPU-...`` and ``MIG-...`` UUIDs; the first entry that names no card ends the list,
    a repeated one empties it. A process sees one MIG instance and then no other device. Indices follow NVML's
    order, which is CUDA's only with ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` or cards of one kind: once CUDA is
    initialised, :func:`torch_uuids` knows better.

    >>> visible_uuids("1", [Card("GPU-aa"), Card("GPU-bb")])
    ('GPU-bb',)
    """
    if variable is None:
        uuids = [card.default_uuid for card in cards if card.default_uuid]
    else:
        uuids = _parse_variable(variable.strip(), cards)
    instances = [uuid for uuid in uuids if uuid.startswith(MIG_PREFIX)]
    return tuple(instances[:1] or uuids)


def torch_uuids(devices: Sequence[str], variable: str | None, cards: Sequence[Card]) -> tuple[str, ...]:
    """Turn the UUIDs that torch gives for its devices, in torch's order, into those of NVML.

    torch leaves the prefix out, and for a MIG instance it may give the UUID of the card: then
    ``CUDA_VISIBLE_DEVICES`` says which instance it is. A device that NVML does not know is an empty string, so
    that the position stays the torch index.

    >>> torch_uuids(["bb", "aa"], None, [Card("GPU-aa"), Card("GPU-bb")])
    ('GPU-bb', 'GPU-aa')
    """
    expected = visible_uuids(variable, cards)
    instances = {uuid: card for card in cards for uuid in card.instances}
    by_uuid = {_strip(card.uuid): card for card in cards if card.uuid}
    found = []
    for device in map(_strip, devices):
        card = by_uuid.get(device)
        if card is None:
            found.append(next((uuid for uuid in instances if _strip(uuid) == device), ""))
        elif card.is_mig:
            own = [uuid for uuid in expected if instances.get(uuid) is card]
            found.append(own[0] if own else card.default_uuid)
        else:
            found.append(card.uuid)
    return tuple(found)


def _parse_variable(variable: str, cards: Sequence[Card]) -> list[str]:
    known = [uuid for card in cards for uuid in (card.uuid, *card.instances) if uuid]
    by_prefix = variable.startswith((GPU_PREFIX, MIG_PREFIX))
    uuids: list[str] = []
    for entry in map(str.strip, variable.split(",")):
        uuid = _match_prefix(entry, known) if by_prefix else _match_index(entry, cards)
        if uuid is None:
            break
        if uuid and uuid in uuids:
            return []
        uuids.append(uuid)
    return uuids


def _match_prefix(entry: str, known: Sequence[str]) -> str | None:
    matches = [uuid for uuid in known if entry.startswith((GPU_PREFIX, MIG_PREFIX)) and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _match_index(entry: str, cards: Sequence[Card]) -> str | None:
    try:
        index = int(entry)
    except ValueError:
        return None
    return cards[index].default_uuid if 0 <= index < len(cards) else None


def _strip(uuid: str) -> str:
    return uuid.removeprefix(GPU_PREFIX).removeprefix(MIG_PREFIX).lower()
