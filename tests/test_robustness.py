"""Any drawn call, good or bad, gives what the contract promises or one of our errors, and takes exactly the good ones.

An ordinary run draws a few hundred calls. `DHP_ROBUSTNESS_EXAMPLES=100000` draws so many by abstract evaluation and a
tenth of it by execution; with it, `--hypothesis-seed=` chooses other ones.
"""

import collections
import contextlib
import itertools
import math
import os

import cases
import jax
import pytest
import strategies
from absl.testing import parameterized
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from outcomes import (
    PACKAGE,
    UnexpectedOutcome,
    assert_difference_is_known,
    assert_ours,
    check,
    evaluate,
    execute,
    is_comparable,
)

import dhp_jax

_EXAMPLES = int(os.environ.get("DHP_ROBUSTNESS_EXAMPLES", "0"))
_CLEAR_EVERY = 500  # calls: what JAX keeps of each adds up


def _settings(ordinary, share=1.0):
    return settings(
        max_examples=int(_EXAMPLES * share) or ordinary,
        derandomize=not _EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


_calls_done = collections.Counter()


@contextlib.contextmanager
def _surroundings(call):
    _calls_done["all"] += 1
    if _calls_done["all"] % _CLEAR_EVERY == 0:
        jax.clear_caches()
    with jax.enable_x64(call.x64):
        yield


def _good_call(**changes):
    sizes = {"query": (2, 3, 4, 8), "key": (2, 5, 2, 8), "value": (2, 5, 2, 8)}
    arguments = {name: strategies.Array(shape, "float32") for name, shape in sizes.items()}
    return strategies.Call(arguments, {}, **changes)


def _bad_call():
    return strategies.Call(_good_call().arguments, {"scale": strategies.Option("big", legal=False)})


def _raise_from(file, statement):
    """Calls a function of that file which executes the statement."""
    code = compile(f"def function(**arguments):\n    {statement}", str(file), "exec")
    exec(code, namespace := {})
    return namespace["function"]


_OURS = "dot_product_attention: scale is 'big'; it must be a number. Multiply the query instead."


class ControlTest(parameterized.TestCase):
    """What the tests here must find."""

    @parameterized.named_parameters(
        ("index_error", PACKAGE / "spec.py", "raise IndexError('tuple index out of range')", "not a type of ours"),
        ("assertion", PACKAGE / "spec.py", "assert False", "not a type of ours"),
        ("subclass", PACKAGE / "spec.py", "raise UnicodeError('a kind of ValueError')", "not a type of ours"),
        ("raised_elsewhere", "jax/numpy.py", f"raise TypeError({_OURS!r})", "jax/numpy.py raised it"),
        ("no_way_out", PACKAGE / "spec.py", f"raise TypeError({_OURS.split('. ')[0]!r})", "not the form"),
        ("no_rule", PACKAGE / "spec.py", f"raise TypeError({_OURS.replace('must be', 'is')!r})", "not the form"),
        ("too_long", PACKAGE / "spec.py", f"raise TypeError({_OURS.replace('big', 'big' * 300)!r})", "not the form"),
    )
    def test_error_that_is_not_ours(self, file, statement, complaint):
        with pytest.raises(UnexpectedOutcome, match=complaint):
            check(_bad_call(), lambda: evaluate(_bad_call(), _raise_from(file, statement)))

    def test_error_of_ours_is_taken(self):
        attend = _raise_from(PACKAGE / "spec.py", f"raise TypeError({_OURS!r})")
        _, error = check(_bad_call(), lambda: evaluate(_bad_call(), attend))
        assert str(error) == _OURS

    def test_good_call_refused(self):
        attend = _raise_from(PACKAGE / "spec.py", f"raise TypeError({_OURS!r})")
        with pytest.raises(UnexpectedOutcome, match="a good call is refused"):
            check(_good_call(), lambda: evaluate(_good_call(), attend))

    def test_bad_call_taken(self):
        with pytest.raises(UnexpectedOutcome, match="a bad call is taken"):
            check(_bad_call(), lambda: evaluate(_bad_call(), lambda query, **_: query))

    @parameterized.named_parameters(
        ("dtype", lambda query, **_: query.astype("bfloat16"), "bfloat16"),
        ("shape", lambda query, **_: query[..., 1:], "is not float32"),
        ("structure", lambda query, **_: (query, query), "PyTreeDef"),
    )
    def test_other_result(self, attend, complaint):
        with pytest.raises(UnexpectedOutcome, match=complaint):
            check(_good_call(), lambda: evaluate(_good_call(), attend))

    @parameterized.parameters(
        {"transform": "plain"},
        {"transform": "grad"},
        {"transform": "plain", "in_axes": {"query": 1}, "mapped_size": 2},
        {"transform": "grad", "in_axes": {"key": 0, "value": 4}, "mapped_size": 3},
    )
    def test_other_values(self, **changes):
        def attend(query, key, value):
            return dhp_jax.dot_product_attention(query, key, value).at[1, 2, 3, 4].multiply(1.01)

        with pytest.raises(AssertionError, match="is off by"):
            execute(_good_call(**changes), attend, seed=0)

    def test_call_that_only_we_refuse(self):
        with pytest.raises(UnexpectedOutcome, match="takes this call"):
            assert_difference_is_known(_good_call(), ValueError("dot_product_attention: no call today"))


_SPEC_FLAWS = (
    *({name: -1} for name in ("batch", "query_length", "key_length", "num_query_heads", "num_key_value_heads")),
    *({"num_key_value_heads": 0}, {"channels": 0}, {"channels": 257}, {"query_length": 2**31}, {"key_length": 2**40}),
    *({"scale": math.nan}, {"scale": math.inf}, {"scale": -1e39}, {"dtype": "float64"}, {"dtype": "f"}, {"dtype": ""}),
    *({name: (1, 1, 1)} for name in ("bias_shape", "mask_shape")),
    *({name: (1, 1, 77, 1)} for name in ("bias_shape", "mask_shape")),
)


@st.composite
def _specs(draw):
    """Fields of an AttentionSpec, of the types that it declares, and whether they fit each other."""
    batch, query_length, key_length = (draw(st.integers(0, 9)) for _ in range(3))
    num_key_value_heads = draw(st.integers(1, 3))
    num_query_heads = num_key_value_heads * draw(st.integers(0, 3))
    sizes = (batch, num_query_heads, query_length, key_length)
    shapes = st.one_of(st.none(), st.tuples(*[st.sampled_from((1, size)) for size in sizes]))
    side = st.one_of(st.integers(-12, 12), st.sampled_from((-(2**70), 2**31, 2**70)))
    fields = {
        "batch": batch,
        "query_length": query_length,
        "key_length": key_length,
        "num_query_heads": num_query_heads,
        "num_key_value_heads": num_key_value_heads,
        "channels": draw(st.integers(1, 256)),
        "dtype": draw(st.sampled_from(cases.DTYPES)),
        "scale": draw(st.floats(width=32, allow_nan=False, allow_infinity=False)),
        "is_causal": draw(st.booleans()),
        "local_window": draw(st.one_of(st.none(), st.tuples(side, side))),
        "bias_shape": draw(shapes),
        "mask_shape": draw(shapes),
    }
    flaw = draw(st.sampled_from(_SPEC_FLAWS)) if draw(st.booleans()) else {}
    return fields | flaw, not flaw


def _describe(call, error):
    """For --hypothesis-show-statistics."""
    event("refused" if error else "taken")
    event(call.transform + (" mapped" if call.in_axes else ""))


class DrawnCallTest(parameterized.TestCase):
    @_settings(300)
    @given(call=strategies.calls())
    def test_abstract_evaluation(self, call):
        with _surroundings(call):
            _, error = check(call, lambda: evaluate(call, dhp_jax.dot_product_attention))
            if error and call.transform == "plain":
                assert_difference_is_known(call, error)
        _describe(call, error)

    @_settings(40, share=0.1)
    @given(call=strategies.calls(longest=97, largest_batch=9), seed=st.integers(0, 2**32 - 1))
    def test_execution(self, call, seed):
        with _surroundings(call):
            error = execute(call, dhp_jax.dot_product_attention, seed)
        _describe(call, error)
        event(f"compared with the reference: {error is None and is_comparable(call)}")

    @_settings(200)
    @given(drawn=_specs())
    def test_spec(self, drawn):
        """A good one is made, and its band is that of its window and causality; a bad one gets an error of ours."""
        fields, is_good = drawn
        try:
            spec = dhp_jax.AttentionSpec(**fields)
        except (TypeError, ValueError) as error:
            assert_ours(error)
            assert not is_good
            return
        assert is_good
        options, (left, right) = spec.options, spec.local_window or (math.inf, math.inf)
        for t, s in itertools.product(range(spec.query_length), range(spec.key_length)):
            seen = t - left <= s <= t + right and (s <= t or not spec.is_causal)
            assert seen == (t - options.band_left <= s <= t + options.band_right)
        assert -spec.key_length <= options.band_left <= spec.query_length
        assert -spec.query_length <= options.band_right <= spec.key_length

    def test_good_and_bad_calls_of_every_sort_are_drawn(self):
        drawn = collections.Counter()

        @_settings(300)
        @given(call=strategies.calls())
        def draw(call):
            legal = strategies.is_legal(call)
            drawn.update([legal, (call.transform, legal), (bool(call.in_axes), legal)])
            drawn.update(array.container for array in call.arguments.values() if isinstance(array, strategies.Array))

        draw()
        sorts = itertools.product(("plain", "jit", "grad", "checkpoint", True, False), (True, False))
        for kind in (*sorts, "traced", "numpy", "jax", "list"):
            assert drawn[kind] > 3, kind
        assert min(drawn[True], drawn[False]) > 0.25 * (drawn[True] + drawn[False])
