"""What the package takes from libraries beyond what they document: each part has a line with its purpose, and each
library a bound below its next major version."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "monitor"
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = {
    "torch": {
        "_C": "_C._WeakTensorRef: know a tensor without keeping it",
        "_C._dynamo.eval_frame": "leave the hooks out of what torch.compile compiles",
        "_dynamo.types": "likewise",
        "_disable_current_modes": "look at a gradient under a user's torch dispatch mode",
        "_WeakTensorRef": "know a tensor without keeping it",
        "_DEBUG_SERVER_PROC": "the address of torch.distributed.debug's page",
        "_enabled": "whether a GradScaler is one",
        "_fsdp_flattened": "flattened parameters of FSDP",
        "_get_default_store": "where ranks agree on commands",
        "_init_optim_state": "steps that a checkpoint makes, and nobody trains",
        "_input_metadata": "number of classes of a cross-entropy",
        "_local_tensor": "this rank's shard of a DTensor",
        "_milestones": "where the schedules of a SequentialLR begin",
        "_optimizer_step_post_hooks": "be the last hook",
        "_optimizer_step_pre_hooks": "be the first hook",
        "_patch_step_function": "hooks of a class that is made later",
        "_per_optimizer_states": "the scale of a GradScaler",
        "_saved_dim": "number of classes of a cross-entropy",
        "_saved_other": "the two factors of a product in a graph",
        "_saved_reduction": "how a loss is reduced",
        "_saved_self": "the two factors of a product in a graph",
        "_schedulers": "the schedules that a SequentialLR holds",
        "_unpadded_unsharded_size": "size of a flattened parameter without padding",
        "_version": "whether a tensor was written in place",
        "_zero_grad_profile_name": "whose zero_grad is called",
    },
    "pytorch_ignite": {"_event_handlers": "whether the user handles exceptions"},
    "prometheus_client": {
        "metrics_core": "families with exemplars-free samples, as its own collectors make",
        "samples": "the sample of a family",
        "utils": "how a float is written",
        "exposition": "which format an Accept header asks for",
        "registry": "the class of a collector",
    },
    "Python": {
        "_pyio": "what cheroot's files are made of",
        "_current_frames": "the stack of the training thread (sys)",
        "_getframe": "who calls a patched function (sys)",
    },
}
"""Library -> part that it does not document -> what for."""
NOT_THEIRS = {"_asdict", "_fields", "_make", "_monitor_lr_factors"}
"""Of named tuples, documented in spite of their names; and the key under which we keep a factor in a param group."""
IN_STRINGS = ("probe", "control", "system")
"""The packages that look for parts of torch by name."""


def is_private(name: str) -> bool:
    return name.startswith("_") and len(name) > 1 and not name.startswith("__")


def names_of_ours() -> set[str]:
    """Every name that the package itself gives to something."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """The private modules and names that an import names, and the inner modules of prometheus_client."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if is_private(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(("monitor", "__")):
        library, _, inner = node.module.partition(".")
        private = [alias.name for alias in node.names if is_private(alias.name)]
        if library == "prometheus_client" or any(map(is_private, inner.split("."))):
            private = private or [inner]
        yield from filter(None, private)


def named(node: ast.AST, is_in_strings: bool) -> Iterator[str]:
    """The private names that are read from an object, or stand in a string where parts are asked for by name."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_private(node.attr):
        yield node.attr
    elif is_in_strings and isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from (name for name in [node.value] if name.isidentifier() and is_private(name))


def parts_of_others(ours: set[str]) -> set[str]:
    found: set[str] = set()
    for path in MODULES:
        is_in_strings = path.relative_to(PACKAGE).parts[0] in IN_STRINGS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= set(imported(node)) | (set(named(node, is_in_strings)) - ours)
    return found


def test_the_parts_that_are_used_are_those_that_are_listed() -> None:
    """A part that is no longer used leaves the list; one that is new gets a line, and a bound for its library."""
    used = parts_of_others(names_of_ours() | NOT_THEIRS)
    listed = {part for parts in PARTS.values() for part in parts}
    assert used - listed == set()
    assert listed - used == set()


@pytest.mark.parametrize("library", [library for library in PARTS if library != "Python"])
def test_a_library_of_which_parts_are_used_has_an_upper_bound(library: str) -> None:
    """A new major version is tried before anybody gets it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["ignite"]]
    (line,) = [one for one in asked if one.replace("-", "_").startswith(library)]
    assert re.search(r",<\d+$", line), f"{line} has no upper bound"
