"""What the machine-code check knows of a value: whether it is secret, and if public, what it may point to.

A public value is a number, or a pointer into one of the regions below. A number may also be the address of memory
that the caller owns (an array, scratch): what is loaded from there is secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Regions: memory that the check tells apart. Everything else is memory of the caller, and its contents are secret.
PARAMS = "params"  # the params struct and all structs inside it: public, never written
PLAN = "plan"  # what a planning function returns: public, so nothing secret may be written there
COUNTERS = "counters"  # numbers by which tasks wait for each other: public, nothing secret may be written there
CONSTANTS = "constants"  # read-only data and code of the file, by their addresses
FIELDS = "fields "  # and the letters of its fields: a public struct (cuda/proof/kernel_tables.h)
STACK = "stack"  # and where it was aligned: one frame, or several that follow each other
ANYWHERE = "anywhere"  # a pointer that the check has lost


class Value(NamedTuple):
    """A 64-bit value.

    Attributes:
      secret: it depends on an array's contents.
      region: what it points into; empty for a number.
      offset: into the region; None: not known.
      exact: it points to `offset`, not to an unknown place at or after it.
    """

    secret: bool
    region: str = ""
    offset: int | None = None
    exact: bool = True

    @property
    def is_stack(self) -> bool:
        """Whether it points into the stack, as far as is known."""
        return self.region.startswith(STACK)


SECRET = Value(True)
PUBLIC = Value(False)
LOST = Value(False, ANYWHERE, None, False)


def pointer(region: str, offset: int = 0) -> Value:
    """A pointer to one place."""
    return Value(False, region, offset)


def join(a: Value, b: Value) -> Value:
    """The least that is known where two paths meet."""
    if a == b:
        return a
    if a.secret or b.secret:
        return SECRET
    if a.region != b.region:
        return _mixed(a, b)
    if a.offset is None or b.offset is None or a.offset == b.offset:
        return Value(False, a.region, a.offset if a.offset == b.offset else None, False)
    lowest = min(a.offset, b.offset)
    # A pointer that keeps moving down has no lowest place.
    return Value(False, a.region, None if not a.exact and b.offset < a.offset else lowest, False)


def combine(values: Iterable[Value]) -> Value:
    """The result of an operation that is not followed in detail: secret if any input is; a pointer is lost."""
    result = PUBLIC
    for value in values:
        if value.secret:
            return SECRET
        if _points_to_public(value):
            result = LOST
    return result


def moved(value: Value, distance: int) -> Value:
    """A value plus a constant."""
    if value.secret or not value.region or value.offset is None:
        return value
    return value._replace(offset=value.offset + distance)


def moved_by(value: Value, index: Value) -> Value:
    """A value plus one that is not constant. An index into memory is taken not to be negative."""
    if value.secret or index.secret:
        return SECRET
    if not index.region:
        return value._replace(exact=False) if value.region else PUBLIC
    if not value.region:
        return index._replace(exact=False)
    return _mixed(value, index)


def difference(a: Value, b: Value) -> Value:
    """A value less one that is not constant."""
    if a.secret or b.secret:
        return SECRET
    if a.region and not b.region:
        return Value(False, a.region, None, False)
    return PUBLIC if a.region == b.region else _mixed(a, b)


def _points_to_public(value: Value) -> bool:
    """Whether a secret that is written through it could make something secret that we take for public."""
    return value.region not in ("", CONSTANTS)


def _mixed(a: Value, b: Value) -> Value:
    return LOST if _points_to_public(a) or _points_to_public(b) else PUBLIC
