"""The comparison of cycles over true lengths, by cycles that are made up."""

import contextlib
import io
import json
from unittest import mock

import cycles
import numpy as np
import pytest
from absl.testing import parameterized

from dhp_jax.validate import _controls, statistics, timing
from dhp_jax.validate.calls import Call


def cycles_of(call, longer=0.0, delay=64.0):
    """A row in which "one key" takes `longer` more cycles than random lengths, and the control `delay`."""
    rng = np.random.default_rng(len(call.name))
    seen = timing.examine(
        lambda seed: {
            name: rng.normal(20000.0 + longer * (name == "one key"), 20.0, 2000)
            for name in ("random", "random again", *cycles.LENGTHS)
        }
    )
    control = statistics.difference(rng.normal(0.0, 20.0, 2000), rng.normal(delay, 20.0, 2000))
    return cycles.Row(cycles.name_of(call), seen, control)


class CyclesTest(parameterized.TestCase):
    """Equal cycles pass, a length that costs fails, and a control that is not seen leaves it open."""

    @parameterized.parameters(({}, 0, "PASS"), ({"longer": 100.0}, 1, "FAIL"), ({"delay": 0.0}, 3, "UNKNOWN"))
    def test_one_call_decides(self, odd, status, said):
        kept, printed = [], io.StringIO()

        def measure(call, runs):
            assert runs == 2000
            return cycles_of(call, **(odd if call is cycles.CALLS[2] else {}))

        with contextlib.redirect_stdout(printed):
            assert cycles.run(measure, 2000, kept.append) == status
        lines = [line for line in printed.getvalue().splitlines() if line.startswith("| B=")]
        assert [line.split(" | ")[-1] for line in lines] == [
            f"{said if call is cycles.CALLS[2] else 'PASS'} |" for call in cycles.CALLS
        ]
        assert [len(told["rows"]) for told in kept] == [*range(1, len(cycles.CALLS) + 1)]
        json.dumps(kept[-1])

    @parameterized.parameters((0, {(1500, 32, 0)}), (-1, {(300, 4, 4_000_000)}))
    def test_a_long_call_has_fewer_runs_and_a_rest_after_each(self, index, expected):
        paces = set()

        def time_call(call, work, classes, order, waits, repeats, rest):
            paces.add((len(order) // len(classes), repeats, rest))
            rng = np.random.default_rng(len(order))
            return repeats * rng.integers(20_000, 20_100, (len(order), 4)), None

        with mock.patch.object(_controls, "time_call", time_call), mock.patch.object(Call, "arrays", return_value={}):
            cycles.measure(cycles.CALLS[index], 1500)
        assert paces == expected

    def test_without_a_gpu_it_says_so(self):
        said = io.StringIO()
        with pytest.raises(SystemExit), contextlib.redirect_stderr(said):
            cycles.main([])
        assert "cycles cannot be read: " in said.getvalue()

    def test_calls_have_names_of_their_own_and_every_length(self):
        assert len({cycles.name_of(call) for call in cycles.CALLS}) == len(cycles.CALLS)
        assert all(set(cycles.LENGTHS) < set(call.secrets()) for call in cycles.CALLS)
