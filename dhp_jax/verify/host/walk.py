"""Walks all paths through a function and what it calls, until nothing new is learnt about any point.

Each call is walked in the state of its caller, so that what a caller keeps on the stack, such as a struct of pointers,
is known in the callee. Loops and joins keep what holds on every path (an abstract interpretation; it ends because
every join only forgets).
"""

from __future__ import annotations

import heapq

from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.rules import BLOCK_FUNCTIONS, WAITING_FUNCTIONS
from dhp_jax.verify.host.semantics import Semantics
from dhp_jax.verify.host.state import RSP, SECRET_LANES, UNKNOWN_FLAGS, State
from dhp_jax.verify.host.values import SECRET, moved
from dhp_jax.verify.host.x86 import Decoder, Flow, Instruction

_DEEPEST_CALL = 16
_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7
_CALLER_SAVED = (_RAX, _RCX, _RDX, _RSI, _RDI, 8, 9, 10, 11)

_Context = tuple[int, ...]  # the return addresses of the calls under way
_Point = tuple[_Context, int]
_ENDS = (Flow.JUMP, Flow.RETURN, Flow.INDIRECT_JUMP, Flow.STOP)


class Walk:
    """One walk from one entry.

    Attributes:
      findings: (rule, address) -> the instruction that breaks the rule.
      visited: addresses of all instructions that were reached.
      semantics: what was seen of secrets.
    """

    def __init__(self, elf: Elf, decoder: Decoder, entry: int, state: State):
        """Walks; `state` is what the function finds.

        Raises:
          UnverifiableError: execution may come to what is no instruction.
        """
        self._elf = elf
        self._decoder = decoder
        self.findings: dict[tuple[str, int], str] = {}
        self.visited: set[int] = set()
        self.semantics = Semantics(elf, self._report)
        self._leaders = self._find_leaders(entry)
        self._known: dict[_Point, State] = {}
        self._pending: list[tuple[int, _Context, int]] = []
        self._arrive(((), entry), state)
        while self._pending:
            _, context, address = heapq.heappop(self._pending)
            self._walk_block((context, address))

    def _report(self, rule: str, instruction: Instruction) -> None:
        self.findings[rule, instruction.address] = instruction.text

    def _imported_function(self, address: int) -> str | None:
        """The name of the function of another file that a stub at this address jumps to, if it is such a stub."""
        instruction = self._decoder.at(address)
        if instruction.name == "ENDBR64":
            instruction = self._decoder.at(instruction.end)
        name = self._imported_target(instruction) if instruction.flow is Flow.INDIRECT_JUMP else None
        if name is not None:
            self.visited.update((address, instruction.address))
        return name

    def _imported_target(self, instruction: Instruction) -> str | None:
        """The name of the function of another file whose address an indirect jump or call loads."""
        for memory in instruction.memory:
            if memory.reads and memory.base is None and memory.index is None:
                return self._elf.imports.get(memory.displacement)
        return None

    def _find_leaders(self, entry: int) -> set[int]:
        """Where blocks begin: the entry, and all that direct jumps, branches and calls lead to."""
        leaders, pending = {entry}, [entry]
        while pending:
            address = pending.pop()
            if self._imported_function(address) is not None:
                continue
            following = []
            while True:
                instruction = self._decoder.at(address)
                if instruction.flow in (Flow.JUMP, Flow.BRANCH, Flow.CALL):
                    following.append(instruction.target)
                if instruction.flow in _ENDS:
                    break
                if instruction.flow is not Flow.NEXT:
                    following.append(instruction.end)
                    break
                address = instruction.end
                if address in leaders:
                    break
            pending += [leader for leader in following if leader not in leaders]
            leaders.update(following)
        return leaders

    def _arrive(self, point: _Point, state: State) -> None:
        """Takes note that execution may come to a point in this state."""
        known = self._known.get(point)
        if known is None:
            self._known[point] = state.copy()
        elif not known.join(state):
            return
        context, address = point
        entry = (-len(context), context, address)
        if entry not in self._pending:
            heapq.heappush(self._pending, entry)

    def _walk_block(self, start: _Point) -> None:
        context, address = start
        state = self._known[start].copy()
        while True:
            instruction = self._decoder.at(address)
            self.visited.add(address)
            if instruction.flow in (Flow.NEXT, Flow.BRANCH):
                self.semantics.step(instruction, state)
            if instruction.flow is Flow.NEXT:
                address = instruction.end
                if address in self._leaders:
                    return self._arrive((context, address), state)
                continue
            return self._leave_block(context, instruction, state)

    def _leave_block(self, context: _Context, instruction: Instruction, state: State) -> None:
        match instruction.flow:
            case Flow.BRANCH:
                self._arrive((context, instruction.target), state)
                self._arrive((context, instruction.end), state)
            case Flow.JUMP:
                self._jump(context, instruction, state)
            case Flow.CALL:
                self._call(context, instruction, state)
            case Flow.RETURN:
                self._return(context, instruction, state)
            case Flow.INDIRECT_JUMP | Flow.INDIRECT_CALL:
                self._jump_indirectly(context, instruction, state)
            case _:
                self._report("unfollowed-jump", instruction)

    def _jump(self, context: _Context, instruction: Instruction, state: State) -> None:
        name = self._imported_function(instruction.target)
        if name is None:
            return self._arrive((context, instruction.target), state)
        self._call_imported(name, instruction, state)
        return self._return(context, instruction, state)

    def _call(self, context: _Context, instruction: Instruction, state: State) -> None:
        name = self._imported_function(instruction.target)
        if name is not None:
            self._call_imported(name, instruction, state)
            return self._arrive((context, instruction.end), state)
        if len(context) == _DEEPEST_CALL:
            return self._report("unfollowed-jump", instruction)
        top = state.general[RSP] = moved(state.general[RSP], -8)
        assert top.offset is not None  # Semantics.step sees to it
        state.frames = (*state.frames, (top.region, top.offset))
        inner = (*context, instruction.end)
        known = self._known.get((inner, instruction.target))
        if known is not None and known.frames != state.frames:
            return self._report("unfollowed-stack", instruction)
        return self._arrive((inner, instruction.target), state)

    def _return(self, context: _Context, instruction: Instruction, state: State) -> None:
        top = state.general[RSP]
        if (top.region, top.offset) != state.frames[-1] or top.offset is None:
            self._report("unfollowed-stack", instruction)
        elif context:
            state.general[RSP] = moved(top, 8)
            state.frames = state.frames[:-1]
            state.drop_frame(top.region, top.offset + 8)
            self._arrive((context[:-1], context[-1]), state)

    def _jump_indirectly(self, context: _Context, instruction: Instruction, state: State) -> None:
        name = self._imported_target(instruction)
        if name is not None:
            self._call_imported(name, instruction, state)
            if instruction.flow is Flow.INDIRECT_JUMP:
                return self._return(context, instruction, state)
            return self._arrive((context, instruction.end), state)
        targets = [state.general[r.index] for r in instruction.operands if r is not None]
        for memory in instruction.memory:
            targets.append(self.semantics.address(memory, state))
            targets += self.semantics.load(memory, state) if memory.reads else []
        secret = any(value.secret for value in targets)
        return self._report("secret-target" if secret else "unfollowed-jump", instruction)

    def _call_imported(self, name: str, instruction: Instruction, state: State) -> None:
        """What a function of another file does to the registers and the stack."""
        if name in BLOCK_FUNCTIONS:
            used = (_RDI, _RDX) if name == "memset" else (_RDI, _RSI, _RDX)
            if any(state.general[register].secret for register in used):
                self._report("secret-address", instruction)
            self.semantics.write_block(instruction, state, state.general[_RDI], SECRET)
        elif name not in WAITING_FUNCTIONS:
            self.findings["foreign-call", instruction.address] = f"{instruction.text} ({name})"
        returned = state.general[_RDI] if name in BLOCK_FUNCTIONS else SECRET
        for register in _CALLER_SAVED:
            state.general[register] = SECRET
        state.general[_RAX] = returned
        state.vectors = [SECRET_LANES] * len(state.vectors)
        state.masks = [True] * len(state.masks)
        state.secret_flags = UNKNOWN_FLAGS
