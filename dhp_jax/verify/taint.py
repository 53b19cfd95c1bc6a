"""The fixpoint: what can be secret in which register before each instruction, over all paths.

States are joined where paths meet, and only grow, so the search ends. Paths that arrive with different known predicates
(a flag that the code has set to a constant) are kept apart, for a few such flags.

A secret branch is a finding by itself, and makes the kernel a LEAK; what a secret branch would make secret beyond it is
therefore not followed: in a kernel without findings every branch is public, and then no register differs between two
executions for having gone another way.
"""

from __future__ import annotations

import functools

from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.instruction import SIZE, Instruction
from dhp_jax.verify.memory import Memory
from dhp_jax.verify.policy import Policy
from dhp_jax.verify.program import Program
from dhp_jax.verify.site import Site
from dhp_jax.verify.state import Guard, State, guard_of
from dhp_jax.verify.transfer import Transfer
from dhp_jax.verify.verdict import UnverifiableError

_MOST_VARIANTS = 16  # of one block, by known predicates

_Entry = tuple[int, tuple[Guard, ...]]  # a block, and the predicates that are known where it begins


class Analysis:
    """The search for all states of one kernel under one policy."""

    def __init__(self, kernel: Kernel, policy: Policy):
        self._policy = policy
        self._program = Program(kernel)
        self._memory = Memory(kernel, policy)
        self._transfer = Transfer(self._program, self._memory)
        self._entries: dict[_Entry, State] = {(0, ()): State()}
        self._variants: dict[int, list[_Entry]] = {0: [(0, ())]}  # of each block
        self._problems: dict[str, UnverifiableError] = {}

    def run(self) -> None:
        """Follows all paths until nothing new is learned."""
        waiting, known = set(self._entries), self._memory.known
        while waiting:
            entry = min(waiting)
            waiting.remove(entry)
            try:
                for target, state in self._leave(entry):
                    waiting |= self._arrive(target, state)
            except UnverifiableError as problem:
                self._problems[problem.problem] = problem
            if not waiting and self._memory.known > known:
                # What memory holds is read anywhere: all of it once more, when nothing else is new.
                waiting, known = set(self._entries), self._memory.known

    @functools.cached_property
    def sites(self) -> list[Site]:
        """What is known before each instruction, by address."""
        found = [site for entry in self._entries for site in self._walk(entry)]
        return sorted(found, key=lambda site: site.listed.instruction.address)

    def problems(self) -> list[UnverifiableError]:
        """All that could not be modelled."""
        if not self._problems:
            try:
                self._program.check_reached({site.listed.instruction.address for site in self.sites})
            except UnverifiableError as problem:
                return [problem]
        return list(self._problems.values())

    def _leave(self, entry: _Entry) -> list[tuple[_Entry, State]]:
        """Where a block leads, and with what."""
        code = self._program.block(entry[0])
        state = self._entries[entry].copy()
        for listed in code[:-1]:
            self._transfer.apply(listed.instruction, state)
        last = code[-1].instruction
        targets = self._program.successors(last, state)
        self._transfer.apply(last, state)
        return [self._enter(target, self._taken(last, target, state)) for target in targets]

    def _enter(self, target: int, state: State) -> tuple[_Entry, State]:
        entry = (target, state.known_predicates())
        variants = self._variants.get(target, ())
        return (entry if entry in self._entries or len(variants) < _MOST_VARIANTS else (target, ())), state

    def _arrive(self, entry: _Entry, state: State) -> set[_Entry]:
        """Joins a state into that at the entry of a block; returns the entries that changed.

        Registers of the warp are one for all variants: a secret that one of them brings is there in all.
        """
        changed = set()
        if entry not in self._entries:
            self._entries[entry] = state.copy()
            self._variants.setdefault(entry[0], []).append(entry)
            changed.add(entry)
        elif self._entries[entry].merge(state):
            changed.add(entry)
        variants = self._variants[entry[0]]
        for other in variants if len(variants) > 1 else ():
            if any([self._entries[other].share(self._entries[source]) for source in variants]):
                changed.add(other)
        return changed

    def _walk(self, entry: _Entry) -> list[Site]:
        state = self._entries[entry].copy()
        found = []
        for listed in self._program.block(entry[0]):
            found.append(Site(listed, state.copy(), self._memory, self._policy))
            try:
                self._transfer.apply(listed.instruction, state)
            except UnverifiableError:
                break
        return found

    def _taken(self, last: Instruction, target: int, state: State) -> State:
        """The state of the threads that go from a guarded branch or exit to `target`."""
        guard = guard_of(last)
        following = last.address + SIZE
        lone = len(last.operands) <= 1 and not last.modifiers  # no second predicate, no vote of the warp
        if guard is None or not lone or last.opcode not in ("BRA", "EXIT"):
            return state
        if last.opcode == "BRA" and self._program.label(last) == following:
            return state
        return state.assume((guard[0], guard[1] != (target == following)))
