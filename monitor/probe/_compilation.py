"""Keeping torch.compile out of our functions, at no cost per call."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Any)


def skipped(function: F) -> F:
    """Keep a function from being traced; what it calls is compiled as without it."""
    return _mark(function, is_recursive=False)


def untraced(function: F) -> F:
    """Keep a function and everything that it calls from being traced.

    ``torch.compiler.disable`` does the same with a wrapper that costs about 0.3 us a call; a mark on the code
    costs none.
    """
    return _mark(function, is_recursive=True)


def _mark(function: F, *, is_recursive: bool) -> F:
    try:
        from torch._C._dynamo.eval_frame import set_code_exec_strategy
        from torch._dynamo.types import FrameAction, FrameExecStrategy  # type: ignore[attr-defined]

        inner = FrameAction.SKIP if is_recursive else FrameAction.DEFAULT
        set_code_exec_strategy(function.__code__, FrameExecStrategy(FrameAction.SKIP, inner))
        function._torchdynamo_disable = True
    except ImportError:
        return torch.compiler.disable(function, recursive=is_recursive)  # type: ignore[no-any-return, no-untyped-call]
    return function
