"""Tell which losses are in an optimizer's gradients, by what each backward pass does to the ``.grad`` of parameters.

The gradient that a step applies to a parameter is the sum over the backward passes that have reached the parameter
since its ``.grad`` was last cleared, by whomever and in whatever way. So a few parameters of each optimizer are looked
at before and after every backward pass: a ``.grad`` of None has been cleared; one that is another tensor, or of another
version, after the pass than before it has been reached. In the first passes all parameters are witnesses; then
one for each group of parameters that are always reached together, as far as it takes to see every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from monitor.link import Pass
from monitor.probe._alteration import multiplier, norm_of, root_factor, tolerance_of
from monitor.probe._compilation import untraced
from monitor.probe._graph import has_leaf, reaches
from monitor.probe._guess import guess_loss
from monitor.probe._values import Value, product
from monitor.probe._witness import ASSUMED as ASSUMED
from monitor.probe._witness import Groups, Witness, chosen_of, is_dear, version_of

NUM_LEARNING = 8
"""Backward passes in a row that reach nothing new before the witnesses of an optimizer are chosen."""
MAX_LEARNING = 64
"""Backward passes before they are chosen all the same."""
MAX_PASSES = 65_536
"""Backward passes that a step may have. Beyond, its loss counts as unknown."""
TRAINS = -1
NUM_LOOKS = 256
"""Steps after each of whose first pass a sole witness is looked at, before most of these looks are left out."""
NUM_ASSUMED = 31
"""First passes without a look between two with one."""
MAX_SAMPLED = 65_536
"""Elements of a gradient that are read at most to tell whether it was zeroed."""


USUAL: list[Any] = [None, None, False]
"""For the hot path: the one :class:`Witness` that it has to look at, and the norms of the same optimizer. None wherever
there is more to do. The third tells that of several optimizers on one thread each may be looked at by its own. Set by
``_watched.expect_usual``; everybody else takes away only."""


class LossAttribution:
    """Know which backward passes are in the gradients of one optimizer.

    Args:
        groups: returns the optimizer's param groups; none once it is gone.
        on_cleared: called when gradients that no step has applied turn out to have been cleared.
        on_replaced: called when gradients turn out to have been put together by hand.
    """

    def __init__(self, groups: Groups, on_cleared: Callable[[], None], on_replaced: Callable[[], None]) -> None:
        self.sole: Witness | None = None
        """The only witness, once it is chosen, if it is a plain tensor that every pass has reached: for the hot path,
        which looks at it only where there is something to find."""
        self.guess: float | None = None
        """The loss of a guess among the classes, once the graph of a loss has told it."""
        self.num_discarded = 0
        """Times in a row that gradients were cleared without a step."""
        self.is_updated = False
        """Whether the parameters had changed between the last two of these times."""
        self.num_unreached = 0
        """Backward passes in a row that have reached none of these parameters, and no step."""
        self._groups = groups
        self._on_cleared, self._on_replaced = on_cleared, on_replaced
        self.logged: list[Value] = []
        """The loss that the user has given in the place of what was back-propagated; empty if none."""
        self.witnesses: list[Witness] = []
        """The parameters that are looked at; none before the first backward pass."""
        self._num_learnt = 0
        self._num_familiar = 0
        self._is_learning = True
        self._num_missed = 0
        self._num_frozen = 0
        self._has_discarded = False
        self._update: int | None = None
        self._cleared_alone: set[int] = set()
        self._unused: list[Witness] = []
        self._newest: Pass | None = None
        self._knows_others = False
        self._asked: dict[int, int] = {}
        self._is_altered = False
        self._withheld: list[Pass] = []
        self._is_withholding = False
        self._factor: float | None = None
        self._norm: float | None = None

    # ----------------------------------------------------------------------------------------------- backward

    def begin(self, roots: Any) -> None:
        """Look before a backward pass from ``roots``."""
        if not self.witnesses or self._is_outdated():
            self._learn()
        else:
            self._settle(None)
        for witness in self.witnesses:
            if len(witness.passes) >= MAX_PASSES:  # nobody steps: what is kept must not grow without end
                witness.passes = [(0, None)]
        if self._compares:
            self._factor = root_factor(roots)

    def end(self, one: Pass, roots: Any) -> bool:
        """Look after a backward pass from ``roots`` (None: it has failed); return whether it has reached
        these parameters."""
        is_lost = any(witness.parameter() is None for witness in self.witnesses)
        is_reached = self._settle(one) or self._newest is one
        if not is_reached and roots is not None:
            is_reached = self._is_reached_in_silence(one, roots) or (is_lost and self._look_again(one, roots))
        self.num_unreached = 0 if is_reached else self.num_unreached + 1
        USUAL[0] = None if self.num_unreached else USUAL[0]
        if roots is not None:
            self._follow(one, roots, is_reached)
        if is_reached and self._is_learning and self.guess is None:
            self.guess = guess_loss(roots)
        if self._compares and is_reached:
            self._norm = norm_of(self.witnesses[0].gradient())
        return is_reached

    @property
    def _compares(self) -> bool:
        """Tell whether the norm of a gradient is noted, to see what an alteration has done: until the witnesses are
        chosen, and of who alters gradients for ever."""
        return self._is_altered or self._is_learning

    def withhold(self, one: Pass, roots: Any, is_alone: bool) -> None:
        """Keep a pass that no gradient shows, for the next one that does: ``fully_shard`` adds up micro-batches out
        of sight until it synchronizes. They are those of whole parameters, known by their shapes.

        ``is_alone``: no other optimizer may be meant; else the loss is unknown.
        """
        if has_leaf(roots, {parameter.shape for parameter in self._parameters()}):
            self._is_withholding = True
            if len(self._withheld) >= MAX_PASSES:
                self._withheld = [(0, None)]
            self._withheld.append(one if is_alone else (one[0], None))

    @property
    def is_sharded(self) -> bool:
        """Tell whether gradients may be added up out of sight."""
        return bool(self.witnesses) and self.witnesses[0].is_sharded

    def _release(self) -> None:
        if self._withheld:
            for witness in self.witnesses:
                if witness.passes:
                    witness.passes = self._withheld + witness.passes
            self._withheld = []

    def is_reached_by(self, thread: int, roots: Any) -> bool:
        """Tell whether a thread, given by ident, trains these parameters, by a backward pass of its own: asked where
        several threads back-propagate. Once it does, it always does; until then it is looked at now and then."""
        num_asked = self._asked.get(thread, 0)
        if num_asked == TRAINS:
            return True
        self._asked[thread] = num_asked + 1
        if num_asked & (num_asked - 1) or not self._is_reached_from(roots):
            return False
        self._asked[thread] = TRAINS
        return True

    def is_trained_by(self, thread: int) -> bool:
        """Tell whether a thread is known to train these parameters."""
        return self._asked.get(thread) == TRAINS

    def _settle(self, underway: Pass | None, *, is_step: bool = False) -> bool:
        """Bring every witness up to date; what has changed is the work of the pass under way, if there is one.
        ``is_step``: a step begins, which applies what is left."""
        is_reached = is_cleared = is_altered = is_replaced = False
        for witness in self.witnesses:
            gradient = witness.gradient()
            if not witness.has_changed(gradient):
                continue
            if underway is not None and gradient is not None:
                witness.add(underway, gradient)
                is_reached = True
            elif witness.passes and (gradient is None or self._is_zeroed(gradient)):
                witness.passes = []
                is_cleared = True
            elif witness.passes:
                is_altered = True
                is_replaced = is_replaced or gradient is None or witness.is_other(gradient)
            witness.see(gradient)
        if is_reached:
            self._newest = underway
            self._release()
        if self.sole is not None and (is_altered or is_cleared):
            self.sole.num_looks = self.sole.num_assumed = 0
        if is_altered:
            self._note_altered(is_replaced)
        if is_cleared:
            self._note_cleared(is_step)
        return is_reached

    def _is_zeroed(self, gradient: Tensor) -> bool:
        """Tell whether the loop has zeroed this gradient. The gradient of a single witness may be zero by nature: there
        all of them are to be."""
        if not is_zeroed(gradient) or len(self.witnesses) > 1:
            return is_zeroed(gradient)
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        return all(is_zeroed(getattr(g, "_local_tensor", g)) for g in gradients)

    def _note_altered(self, is_replaced: bool) -> None:
        """Have the losses say what the gradients do, now that the loop itself has changed them. Where it first does
        so after the witnesses were chosen, there is nothing to compare with. Other gradients in the place of those that
        were thrown away may be put together from any number of passes."""
        witness = self.witnesses[0]
        gradient, num_passes = witness.gradient(), len(witness.passes)
        norm = norm_of(gradient)
        by = None
        if is_replaced and self._has_discarded:
            self._on_replaced()
        elif self._compares:
            by = multiplier(self._norm, norm, self._factor, num_passes, tolerance_of(gradient))
        self._is_altered, self.sole, self._norm = True, None, norm
        USUAL[0] = None
        if by != 1.0:
            for each in self.witnesses:
                each.passes = [(number, _times(loss, by)) for number, loss in each.passes]

    def _note_cleared(self, is_step: bool = False) -> None:
        self._has_discarded = True
        if self.has_passes:
            return
        USUAL[0] = None
        if is_step and any(p.grad is not None for p in self._parameters()):
            self._cleared_alone.update(witness.parameter_id for witness in self.witnesses)
            self._learn()
            self._on_replaced()
        else:
            self.num_discarded += 1
            self._on_cleared()
            parameter = self.witnesses[0].parameter()
            update = None if parameter is None else version_of(parameter)
            self.is_updated, self._update = update != self._update, update
            self.logged = []

    def _follow(self, one: Pass, roots: Any, is_reached: bool) -> None:
        """Choose the witnesses when enough has been seen; look again at every parameter after a surprise."""
        if is_reached:
            if self._is_learning:
                self._note_touched(one)
            return
        self._num_missed += 1
        is_checked = not self._knows_others or not self._num_missed & (self._num_missed - 1)
        if self._is_withholding or not (is_checked or self._is_reached_anew()):
            return  # passes that reach none of these parameters are known, and are checked at powers of two
        if not self._look_again(one, roots):
            self._knows_others, self.sole = True, None
            USUAL[0] = None

    def _is_reached_anew(self) -> bool:
        """Tell whether a parameter that no pass had reached has a gradient now."""
        gradients = [(witness, witness.gradient()) for witness in self._unused]
        return any(gradient is not None and witness.has_changed(gradient) for witness, gradient in gradients)

    def _note_touched(self, one: Pass) -> None:
        """Remember which parameters a pass has reached; choose the witnesses when it is long since there was one that
        no pass had reached before."""
        touched = [witness for witness in self.witnesses if witness.newest is one]
        self._num_familiar = self._num_familiar + 1 if all(witness.touched for witness in touched) else 1
        for witness in touched:
            witness.touched |= 1 << self._num_learnt
        self._num_learnt += 1
        if self._num_familiar >= NUM_LEARNING or self._num_learnt >= MAX_LEARNING:
            self._choose()

    def _is_reached_in_silence(self, one: Pass, roots: Any) -> bool:
        """Tell by the graph whether a pass has reached gradients made in inference mode, which do not show it."""
        silent = [witness for witness in self.witnesses if witness.version is None]
        if not silent or not self._is_reached_from(roots):
            return False
        for witness in silent:
            gradient = witness.gradient()
            if gradient is not None:
                witness.add(one, gradient)
        return True

    def _look_again(self, one: Pass, roots: Any) -> bool:
        """Make every parameter a witness if a pass that has reached none of the witnesses leads to one; return whether
        it does."""
        if not self._is_reached_from(roots):
            return False
        self._learn()
        for witness in self.witnesses:
            gradient = witness.gradient()
            if gradient is not None:
                witness.add(one, gradient)
        self._note_touched(one)
        return True

    def _is_outdated(self) -> bool:
        """Tell whether a witness is gone, its parameter replaced, or a parameter that was frozen is so no more."""
        if any(witness.parameter() is None for witness in self.witnesses):
            return True
        return self._num_frozen > 0 and sum(not p.requires_grad for p in self._parameters()) < self._num_frozen

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self._groups() for parameter in group["params"])

    def _is_reached_from(self, roots: Any) -> bool:
        return reaches(roots, {id(parameter) for parameter in self._parameters()})

    def relearn(self) -> None:
        """Look at every parameter again: there are others than before."""
        if self.witnesses:
            self._learn()

    def _learn(self) -> None:
        """Make every parameter a witness; what is known to be in the gradients stays known, unless all were cleared."""
        gradients = (parameter.grad for parameter in self._parameters() if parameter.grad is not None)
        known = self._union()
        if known and all(is_zeroed(getattr(g, "_local_tensor", g)) for g in gradients):
            known = []
        groups = list(enumerate(self._groups()))
        places = [
            (g, i) for g, group in groups for i, p in enumerate(group["params"]) if p.requires_grad and not is_lazy(p)
        ]
        self.witnesses = sorted((Witness(self._groups, *place) for place in places), key=is_dear)
        self._num_frozen = sum(not p.requires_grad for p in self._parameters())
        for witness in self.witnesses if known else ():
            witness.passes, witness.newest = list(known), known[-1]
        self._num_learnt, self._num_familiar, self._is_learning, self._unused = 0, 0, True, []
        self._knows_others, self.sole = False, None
        USUAL[0] = None
        self._asked.clear()

    def _choose(self) -> None:
        """Choose the witnesses among all parameters, now that enough passes were seen."""
        self._is_learning = False
        self._unused = [witness for witness in self.witnesses if not witness.touched]
        self.witnesses = chosen_of(self.witnesses, self._cleared_alone)
        only = self.witnesses[0] if len(self.witnesses) == 1 else None
        is_usual = not self._knows_others and not self._is_altered
        self.sole = only if only is not None and only.is_plain and only.fresh is not None and is_usual else None

    # --------------------------------------------------------------------------------------------------- step

    def take(self, underway: Pass | None = None) -> list[Pass]:
        """Return the passes whose gradient the step that begins now applies: empty if none is known."""
        self._settle(underway, is_step=True)
        passes, logged = self._union(), self.logged
        self.drop()
        self.num_discarded = self.num_unreached = 0
        self._has_discarded = False
        return [(0, value) for value in logged] if logged else passes

    def drop(self) -> None:
        """Forget what is in the gradients: a step has applied it."""
        self.logged = []
        for witness in self.witnesses:
            if witness.passes:
                witness.passes = []

    def _union(self) -> list[Pass]:
        witnesses = self.witnesses
        if len(witnesses) == 1:
            return list(witnesses[0].passes)
        return sorted(dict.fromkeys(chain.from_iterable(w.passes for w in witnesses)), key=lambda one: one[0])

    # -------------------------------------------------------------------------------------------------- others

    def log(self, value: Value) -> None:
        """Take the loss of the coming step from the user."""
        self.logged = [value]
        USUAL[0] = None

    @property
    def usual(self) -> Witness | None:
        """The witness that serves alone; None while there is more to look at, or something to put right."""
        return None if self.logged or self.num_discarded or self.num_unreached else self.sole

    @property
    def has_passes(self) -> bool:
        """Tell whether backward passes are known that no step has applied. Looks at no gradient."""
        return any(witness.passes for witness in self.witnesses)

    @property
    def is_pending(self) -> bool:
        """Tell whether there are gradients that no step has applied."""
        if not self.witnesses:
            self._learn()
        for witness in self.witnesses:
            gradient = witness.gradient()
            if gradient is not None and (witness.passes or (self.sole is None and witness.is_other(gradient))):
                return True
        return False

    def watch_change(self, underway: Pass | None) -> Callable[[], None]:
        """Look at the gradients before a clip or an unscaling changes them in place; the function returned looks
        afterwards, and takes the change for no doing of the loop's."""
        self._settle(underway)

        def look() -> None:
            for witness in self.witnesses:
                witness.see(witness.gradient())
            if self._compares and self.witnesses:
                self._norm = norm_of(self.witnesses[0].gradient())

        return look

    def watch_zeroing(self) -> Callable[[], None]:
        """Look at the gradients before they are zeroed in place; the function returned looks afterwards."""
        before = [(w, None if (g := w.gradient()) is None else (id(g), version_of(g))) for w in self.witnesses]

        def look() -> None:
            is_cleared = False
            for witness, state in before:
                gradient = witness.gradient()
                if gradient is not None and state is not None and state != (id(gradient), version_of(gradient)):
                    is_cleared = is_cleared or bool(witness.passes)
                    witness.passes = []
                    witness.see(gradient)
            if is_cleared:
                self._note_cleared()

        return look


def _times(loss: Any, by: float | None) -> Any:
    return tuple(product(one, by) for one in loss) if isinstance(loss, tuple) else product(loss, by)


@untraced
def is_zeroed(gradient: Tensor) -> bool:
    """Tell whether a gradient is all zero. On a device that would wait for it: there it counts as not."""
    if gradient.device.type != "cpu" or gradient.numel() == 0:
        return False
    with torch.no_grad():
        if gradient.layout is torch.sparse_coo:
            gradient = gradient._values()
        if gradient.layout is not torch.strided:
            return False
        flat = gradient.detach().reshape(-1) if gradient.is_contiguous() else gradient.detach()
        if flat.numel() > MAX_SAMPLED and flat.dim() == 1:
            flat = flat[:: flat.numel() // MAX_SAMPLED + 1]
        return not bool(flat.any())
