"""The verifier sees leaks planted in kernels that have none: at least 98 in 100 of them.

The ordinary run draws 60 mutants. `DHP_MUTANTS=800 python -m pytest tests/verify/test_mutants.py` draws as many as it
says.
"""

import collections
import dataclasses
import functools
import os
import random
import sys

import mutants
import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import Policy, Verdict, cubin
from dhp_jax.verify.analysis import verify_kernel

_NUM_DRAWN = int(os.environ.get("DHP_MUTANTS", "60"))
_SHARES = min(16, _NUM_DRAWN)  # of the draw, so that the workers of a test run end at the same time
_GOAL = 0.98
_MOST_PLACES = 300  # of one kernel, drawn: a tensor-core kernel has thousands
_SORTS = ("address", "branch predicate", "coordinate", "guard", "lane", "opcode", "redefinition")

_PUBLIC_LOADS = "B17_rows_by_page_table"  # what mutants.py takes for a secret is public there


@functools.cache
def _kernels():
    """The kernels to plant leaks in: typical ones that ship, and what of the zoo is accepted without a policy."""
    accepted = [file for file in zoo.files() if file.name.startswith("accepted")]
    images = [zoo.cubin(file, where) for file in accepted for where in _where(file)]
    found = [kernel for image in images for kernel in cubin.kernels(image.read_bytes())]
    found += [kernel for where in zoo.ARCHITECTURES for kernel in zoo.typical_kernels(where)]
    policed = tuple(kernel.name for kernel in zoo.kernels() if kernel.guarded_arithmetic)
    return [kernel for kernel in found if not kernel.name.startswith((_PUBLIC_LOADS, *policed))]


def _where(file):
    return ("sm_90a",) if file.stem.endswith(zoo.HOPPER_ONLY) else zoo.ARCHITECTURES


@functools.cache
def _by_sort():
    """The mutants to draw from, by sort, in an order that never changes."""
    found = collections.defaultdict(list)
    for kernel in _kernels():
        for mutant in mutants.mutants(kernel, _MOST_PLACES):
            found[mutant.sort].append(mutant)
    return dict(sorted(found.items()))


def _draw(count):
    """As many mutants of each sort as there are, up to an equal share; what is left over goes to the next sort."""
    chance = random.Random(count)
    drawn, sorts = [], sorted(_by_sort().items(), key=lambda item: len(item[1]))
    for index, (_, candidates) in enumerate(sorts):
        share = (count - len(drawn)) // (len(sorts) - index)
        drawn += chance.sample(candidates, min(share, len(candidates)))
    return drawn


class MutantTest(parameterized.TestCase):
    @pytest.fixture(autouse=True)
    def _take_capsys(self, capsys):
        self._capsys = capsys

    @parameterized.parameters(range(_SHARES))
    def test_planted_leaks_are_seen(self, share):
        drawn = _draw(_NUM_DRAWN)[share::_SHARES]
        survivors = [mutant for mutant in drawn if not mutant.killed_by(verify_kernel(mutant.kernel, Policy()))]
        total, alive = (collections.Counter(mutant.sort for mutant in group) for group in (drawn, survivors))
        rate = 1 - len(survivors) / len(drawn)
        sorts = ", ".join(f"{sort} {count - alive[sort]}/{count}" for sort, count in sorted(total.items()))
        with self._capsys.disabled():  # a worker's stdout is not shown
            print(f"mutants killed: {rate:.1%}, {sorts}", file=sys.stderr)
        told = [f"{mutant.kernel.name} {mutant.kernel.architecture}: {mutant.change}" for mutant in survivors]
        assert rate >= _GOAL, "survivors:\n" + "\n".join(told)

    def test_every_sort_is_there(self):
        assert tuple(_by_sort()) == _SORTS

    def test_there_are_enough_to_draw_from(self):
        assert len(_draw(500)) == 500

    def test_kernels_that_are_changed_are_safe_before(self):
        reports = [report for where in zoo.ARCHITECTURES for report in zoo.shipped_reports(where)]
        known = {(report.kernel, report.architecture) for report in reports}
        others = [kernel for kernel in _kernels() if (kernel.name, kernel.architecture) not in known]
        assert others
        reports += [verify_kernel(kernel, Policy()) for kernel in others]
        assert [report.kernel for report in reports if report.verdict is not Verdict.SAFE] == []


class KillControlTest(parameterized.TestCase):
    """What is not a kill is not counted as one."""

    def _mutant(self, sort):
        return _by_sort()[sort][0]

    def test_unchanged_kernel_kills_nothing(self):
        mutant = self._mutant("address")
        assert not mutant.killed_by(verify_kernel(mutant.original, Policy()))

    def test_finding_elsewhere_is_no_kill(self):
        mutant = self._mutant("address")
        report = verify_kernel(mutant.kernel, Policy())
        moved = [dataclasses.replace(finding, address=finding.address + 16) for finding in report.findings]
        assert mutant.killed_by(report)
        assert not mutant.killed_by(dataclasses.replace(report, findings=tuple(moved)))

    def test_another_rule_is_no_kill(self):
        mutant = self._mutant("lane")
        report = verify_kernel(mutant.kernel, Policy())
        other = [dataclasses.replace(finding, rule="CT07") for finding in report.findings]
        assert mutant.killed_by(report)
        assert not mutant.killed_by(dataclasses.replace(report, findings=tuple(other)))

    @parameterized.parameters("address", "lane", "guard")
    def test_unknown_is_no_kill_of_a_leak(self, sort):
        mutant = self._mutant(sort)
        report = dataclasses.replace(verify_kernel(mutant.kernel, Policy()), verdict=Verdict.UNKNOWN)
        assert not mutant.killed_by(report)

    def test_unknown_kills_an_unknown_opcode_and_nothing_else_does(self):
        mutant = self._mutant("opcode")
        report = verify_kernel(mutant.kernel, Policy())
        assert mutant.killed_by(report)
        assert not mutant.killed_by(dataclasses.replace(report, verdict=Verdict.SAFE))
        assert not mutant.killed_by(dataclasses.replace(report, verdict=Verdict.LEAK))
