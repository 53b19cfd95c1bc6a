"""What every rule has: an ID, a name, a remedy, and a function that finds what breaks it."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar

from dhp_jax.verify.site import Site
from dhp_jax.verify.value import Step

Offence = tuple[str, Step | None]  # what is wrong, and the last step of the way that the secret took


class Rule(abc.ABC):
    """One way to leak. The docstring of a rule says what it catches and misses, why it matters, and its control."""

    id: ClassVar[str]
    name: ClassVar[str]
    remedy: ClassVar[str]

    @abc.abstractmethod
    def offences(self, site: Site) -> Iterator[Offence]:
        """All that one instruction does against the rule, in one of its states."""
