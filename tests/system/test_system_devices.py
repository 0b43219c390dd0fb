from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from monitor.system._devices import Card, torch_uuids, visible_uuids
from monitor.system._torch import read_allocator, read_torch_devices

A = "GPU-aa11aa11-0000-0000-0000-000000000000"
B = "GPU-bb11bb11-0000-0000-0000-000000000000"
C = "GPU-bb22bb22-0000-0000-0000-000000000000"
M0 = "MIG-00000000-1111-1111-1111-111111111111"
M1 = "MIG-10000000-1111-1111-1111-111111111111"
OLD_MIG = f"MIG-{A}/1/0"
CARDS = [Card(A), Card(B), Card(C)]
MIG_CARDS = [Card(A), Card(B, True, (M0, M1))]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, (A, B, C)),
        ("0,1,2", (A, B, C)),
        ("2,0", (C, A)),
        (" 1 , 2 ", (B, C)),
        ("", ()),
        ("-1", ()),
        ("0,-1,1", (A,)),
        ("0,7,1", (A,)),
        ("0,x,1", (A,)),
        ("1,1", ()),
        (A, (A,)),
        (f"{C},{A}", (C, A)),
        ("GPU-bb22", (C,)),
        ("GPU-bb", ()),
        ("GPU-aa,GPU-bb,GPU-bb22", (A,)),
        (f"{A},{A}", ()),
        (f"{A},0", (A,)),
        ("GPU-ff", ()),
        ("NoDevFiles", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(variable, expected):
    """Indices, UUIDs and their unique prefixes; the first bad entry ends the list, a repeated one empties it."""
    assert visible_uuids(variable, CARDS) == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, (M0,)),
        ("1", (M0,)),
        ("0", (A,)),
        ("0,1", (M0,)),
        (M1, (M1,)),
        (f"{M1},{M0}", (M1,)),
        ("MIG-1", (M1,)),
        (B, (B,)),
    ],
)
def test_a_process_sees_one_mig_instance(variable, expected):
    """CUDA shows the named instance, or the first of a card in MIG mode, and no device beside it."""
    assert visible_uuids(variable, MIG_CARDS) == expected


def test_the_older_names_of_mig_instances_are_known():
    """Drivers before R470 name an instance by card and number."""
    assert visible_uuids(OLD_MIG, [Card(A, True, (OLD_MIG,))]) == (OLD_MIG,)


def test_a_card_in_mig_mode_without_instances_is_not_shown():
    """Without an instance there is nothing that CUDA could use."""
    assert visible_uuids(None, [Card(A, True), Card(B)]) == (B,)


def test_a_card_that_does_not_answer_keeps_its_index():
    """The other cards do not move up when one is lost."""
    assert visible_uuids("1", [Card(""), Card(B)]) == (B,)
    assert visible_uuids(None, [Card(""), Card(B)]) == (B,)


@pytest.mark.parametrize(
    ("devices", "variable", "cards", "expected"),
    [
        (["bb11bb11-0000-0000-0000-000000000000", A.removeprefix("GPU-")], None, CARDS, (B, A)),
        ([A.removeprefix("GPU-").upper()], None, CARDS, (A,)),
        ([M1.removeprefix("MIG-")], None, MIG_CARDS, (M1,)),
        ([B.removeprefix("GPU-")], M1, MIG_CARDS, (M1,)),
        ([B.removeprefix("GPU-")], None, MIG_CARDS, (M0,)),
        (["cccccccc", A.removeprefix("GPU-")], None, CARDS, ("", A)),
        ([], None, CARDS, ()),
    ],
    ids=["order of torch", "case", "instance", "card with named instance", "card in MIG mode", "unknown", "none"],
)
def test_torch_knows_its_devices_best(devices, variable, cards, expected):
    """The UUIDs that torch gives decide, in torch's order."""
    assert torch_uuids(devices, variable, cards) == expected


def make_torch(is_initialized=True, cuda="13.0", uuids=("aa", "bb"), statistics=None):
    """Make a torch with CUDA devices, as far as this package looks at one."""

    def properties(index):
        assert is_initialized, "asking for the properties would initialise CUDA"
        return SimpleNamespace(uuid=uuids[index])

    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_initialized=lambda: is_initialized,
            device_count=lambda: len(uuids),
            get_device_properties=properties,
            memory_stats=lambda index: statistics[index],
        ),
    )


def test_torch_is_asked_for_uuids_only_after_cuda_is_initialised():
    """Before that the answer is "not known yet", and nothing is initialised."""
    assert read_torch_devices(make_torch()) == ("aa", "bb")
    assert read_torch_devices(make_torch(is_initialized=False)) is None


def test_a_torch_without_cuda_has_no_devices():
    """A CPU build uses no GPU, whatever the machine has."""
    assert read_torch_devices(make_torch(cuda=None)) == ()


def test_the_allocator_is_read_by_field():
    """The four figures of the caching allocator go by the names of the reading."""
    statistics = {
        "allocated_bytes.all.current": 5,
        "reserved_bytes.all.current": 7,
        "num_alloc_retries": 1,
        "num_ooms": 2,
        "allocated_bytes.all.peak": 99,
    }
    assert read_allocator(1, make_torch(statistics={1: statistics})) == {
        "cuda_allocated_bytes": 5.0,
        "cuda_reserved_bytes": 7.0,
        "cuda_allocation_retries": 1.0,
        "cuda_out_of_memory": 2.0,
    }


def test_the_allocator_is_left_alone_before_cuda_is_initialised():
    """No statistics are asked for, for there are none."""
    assert read_allocator(0, make_torch(is_initialized=False)) == {}


def test_the_real_torch_is_asked_without_side_effect():
    """With the installed torch, reading devices and allocator initialises nothing."""
    import torch

    before = torch.cuda.is_initialized()
    assert read_torch_devices() in ((), None) or before
    assert read_allocator(0) == {} or before
    assert torch.cuda.is_initialized() == before


def test_the_fields_that_torch_names_exist():
    """The statistics that are looked up are the ones that torch documents."""
    import torch

    from monitor.system._torch import _STATISTICS

    documented = torch.cuda.memory_stats.__doc__ or ""
    assert "num_alloc_retries" in documented
    assert "num_ooms" in documented
    assert [key for key in _STATISTICS.values() if key.startswith("num") and key not in documented] == []
    assert "allocated_bytes.{all,large_pool,small_pool}.{current" in documented
    assert "reserved_bytes.{all,large_pool,small_pool}.{current" in documented


def test_the_room_does_not_import_torch():
    """Reading a machine needs no torch: it is looked at only where it is loaded already."""
    code = (
        "import sys; from monitor.system import GpuReader; "
        "from monitor.system._torch import read_allocator, read_torch_devices; "
        "print(read_torch_devices(), read_allocator(0), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["()", "{}", "False"]
