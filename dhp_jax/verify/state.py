"""What is known of all registers at one place of the code, and how two such states meet.

Predicated code leaves a register half written: after ``@P0 MOV R5, x`` it holds x where P0 holds, and what it held
before where not. A Split keeps the two apart until P0 is written anew, so that ``@P0 LDG R6, [R5]`` is seen to use x
alone. Only a public predicate splits: where the predicate is secret, so is the result.

A register of the whole warp is written as soon as any lane has the guard, so it splits on the claim "any P0".

Facts are what one guard says of others: after ``PLOP3 P1 = !P2``, P1 says !P2; after ``VOTEU.ALL UP0, P0``, !UP0 says
that some lane has !P0.
"""

from __future__ import annotations

import dataclasses
import functools

from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.value import Step, Value, originating

Guard = tuple[str, bool]  # a predicate, or a claim on the warp, and the value it has
Facts = dict[Guard, frozenset[Guard]]


@dataclasses.dataclass(frozen=True)
class Split:
    """A register whose content depends on a public predicate, or on a claim that some lane has one."""

    predicate: str
    holds: Value
    fails: Value

    def either(self) -> Value:
        """The content, whatever the predicate."""
        return self.holds.join(self.fails)


def any_lane(guard: Guard) -> Guard:
    """The claim that some lane of the warp has a guard."""
    return f"any {'' if guard[1] else '!'}{guard[0]}", True


@functools.cache
def _names_of(predicate: str) -> frozenset[str]:
    """Its own, and those of the claims that some lane has it, or has it not."""
    return frozenset({predicate, *(any_lane((predicate, value))[0] for value in (True, False))})


def is_claim(guard: Guard) -> bool:
    """Whether it speaks of the warp rather than of one thread."""
    return guard[0].startswith("any ")


def guard_of(instruction: Instruction) -> Guard | None:
    """The predicate that an instruction takes effect under."""
    if not instruction.guarded or instruction.guard is None:
        return None
    return instruction.guard.name, not instruction.guard.negated


class State:
    """Registers, predicates and convergence barriers at one place of the code.

    A register that was never written holds what another kernel left there: secret. A uniform one counts as public: only
    loops that ptxas makes to serve lanes one by one read such, and then use it in no lane.
    """

    def __init__(
        self, contents: dict[str, Value | Split] | None = None, facts: dict[Guard, frozenset[Guard]] | None = None
    ):
        self._contents = contents or {}
        self._facts = facts or {}

    def copy(self) -> State:
        """A state of its own with the same content."""
        return State(dict(self._contents), dict(self._facts))

    def read(self, register: str, guard: Guard | None = None) -> Value:
        """What a register holds, where the guard holds."""
        content = self._contents.get(register)
        if content is None:
            return originating("nothing") if register.startswith("UR") else _never_written(register)
        return self._under(content, guard) if isinstance(content, Split) else content

    def _under(self, content: Split, guard: Guard | None) -> Value:
        for predicate, value in self._said_by(guard):
            if predicate == content.predicate:
                return content.holds if value else content.fails
        return content.either()

    def _said_by(self, guard: Guard | None) -> set[Guard]:
        """All that holds where a guard holds: the guard, the facts, and that some lane has each of them."""
        if guard is None:
            return set()
        said = {guard, *self._facts.get(guard, ())}
        return said | {any_lane(other) for other in said if not is_claim(other)}

    def write(self, register: str, new: Value, guard: Guard | None = None) -> None:
        """Takes a new content, where the guard holds; the guard must be public."""
        if guard is None:
            self._forget(register)
            self._contents[register] = new
            return
        said = self._facts.get(guard, frozenset())
        key = next((claim for claim in sorted(said) if is_claim(claim)), guard)
        # Whether a claim held before tells nothing of now: lanes may have left since.
        old = self.read(register) if is_claim(key) else self.read(register, (key[0], not key[1]))
        content = Split(key[0], new, old) if key[1] else Split(key[0], old, new)
        self._forget(register)
        if key[0] == register:
            self._contents[register] = content.either()
            self._facts[guard] = said  # where it still has the value, it had it before
        else:
            self._contents[register] = content

    def learn(self, guard: Guard, said: frozenset[Guard]) -> None:
        """Takes note of what a guard says of others."""
        self._facts[guard] = said

    def _forget(self, register: str) -> None:
        """A predicate is about to change: what depended on its old value can be either."""
        if "P" not in register:
            return
        about = _names_of(register)
        for other, content in self._contents.items():
            if isinstance(content, Split) and content.predicate in about:
                self._contents[other] = content.either()
        if self._facts:
            self._facts = {
                guard: frozenset(fact for fact in said if fact[0] not in about)
                for guard, said in self._facts.items()
                if guard[0] != register
            }

    def constant(self, predicate: str) -> bool | None:
        """The value of a predicate, where it is known."""
        constants = self.read(predicate).constants
        return bool(next(iter(constants))) if constants and len(constants) == 1 else None

    def known_predicates(self) -> tuple[Guard, ...]:
        """All predicates whose value is known."""
        known = ((name, self.constant(name)) for name in sorted(self._contents) if "P" in name)
        return tuple((name, value) for name, value in known if value is not None)

    def assume(self, guard: Guard) -> State:
        """The state of those threads that have a guard."""
        resolved = {
            register: self._under(content, guard) if isinstance(content, Split) else content
            for register, content in self._contents.items()
            if not isinstance(content, Split) or content.predicate in {name for name, _ in self._said_by(guard)}
        }
        return State({**self._contents, **resolved}, dict(self._facts))

    def share(self, other: State) -> bool:
        """Takes over secrets in registers of the warp; whether there was a new one."""
        changed = False
        for register, content in other._contents.items():
            secret = _either(content).secret
            if register.startswith("U") and secret is not None:
                own = self.read(register)
                if own.secret is None:
                    self._contents[register] = dataclasses.replace(own, secret=secret)
                    changed = True
        return changed

    def merge(self, other: State) -> bool:
        """Takes in another way to the same place; whether that changed what is known."""
        facts = {guard: said & other._facts.get(guard, frozenset()) for guard, said in self._facts.items()}
        changed = facts != self._facts
        self._facts = facts
        for register in self._contents.keys() | other._contents.keys():
            own = self._contents.get(register, self.read(register))
            new = other._contents.get(register, other.read(register))
            joined = _join(own, new)
            if register not in self._contents or not _same(own, joined):
                self._contents[register] = joined
                changed = changed or not _same(own, joined)
        return changed


def _never_written(register: str) -> Value:
    return Value(Step(None, register, "never written in this kernel"))


def _join(own: Value | Split, new: Value | Split) -> Value | Split:
    """Either of two contents. A Split may become one value, never the reverse: so the search for all states ends."""
    if isinstance(own, Split) and (not isinstance(new, Split) or new.predicate == own.predicate):
        holds, fails = (new.holds, new.fails) if isinstance(new, Split) else (new, new)
        return Split(own.predicate, own.holds.join(holds), own.fails.join(fails))
    return _either(own).join(_either(new))


def _either(content: Value | Split) -> Value:
    return content.either() if isinstance(content, Split) else content


def _same(a: Value | Split, b: Value | Split) -> bool:
    if isinstance(a, Split) and isinstance(b, Split):
        return a.predicate == b.predicate and a.holds.same(b.holds) and a.fails.same(b.fails)
    return not isinstance(a, Split) and not isinstance(b, Split) and a.same(b)
