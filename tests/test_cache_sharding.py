"""A cache that is sharded over batch and heads stays so, and no step moves data between devices."""

import jax
import jax.numpy as jnp
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import CHECKS, LAYOUTS, MODES, assert_sharded, cases, make_mesh
from programs import assert_same_bits, collectives
from test_cache import normal

from dhp_jax import KVCache

B, S, N, K, D = 4, 11, 8, 4, 16


def arguments(num_tokens, dtype="bfloat16"):
    cache = KVCache(normal(B, S, K, D, dtype=dtype), normal(B, S, K, D, dtype=dtype, seed=1), jnp.array([5, 2, 7, 9]))
    return cache, *(normal(B, num_tokens, h, D, dtype=dtype, seed=i) for i, h in ((2, N), (3, K), (4, K)))


def secret_step(cache, query, key, value):
    cache = cache.append_oblivious(key, value)
    return cache, cache.attend(query)


def public_step(cache, query, key, value, position=6):
    cache = cache.append(key, value, position)
    return cache, cache.attend(query)


def traced_step(cache, query, key, value):
    """A position in an array."""
    return public_step(cache, query, key, value, jnp.asarray(6))


def several_steps(cache, query, key, value):
    def step(cache, i):
        cache, out = secret_step(*public_step(cache, query, key, value, i)[:1], query, key, value)
        return cache, out

    return jax.lax.scan(step, cache, jnp.arange(2))


STEPS = {  # and how many tokens they append
    "secret": (secret_step, 1),
    "secret_of_three": (secret_step, 3),
    "public": (public_step, 1),
    "traced": (traced_step, 3),
    "scan": (several_steps, 1),
}
SHARDED_HEADS = {name: LAYOUTS[name] for name in ("heads", "batch_and_heads")}


def specs(batch, heads):
    array = P(batch, None, heads, None)
    return KVCache(array, array, P(batch)), array, array, array


def place(mesh, arrays, specs):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), arrays, specs)


class CacheShardingTest(parameterized.TestCase):
    @parameterized.named_parameters(*cases(MODES, SHARDED_HEADS, STEPS))
    def test_steps_communicate_nothing(self, mode, layout, step):
        (step, num_tokens), mesh = step, make_mesh(mode)
        arrays = arguments(num_tokens)
        placed = place(mesh, arrays, specs(*layout))
        with jax.set_mesh(mesh):
            compiled = jax.jit(step).lower(*placed).compile()
            cache, out = compiled(*placed)
        assert collectives(compiled) == set()
        jax.tree.map(lambda x, spec: assert_sharded(x, mesh, spec), cache, specs(*layout)[0])
        assert_same_bits(jax.device_get((cache, out)), jax.device_get(jax.jit(step)(*arrays)))

    @parameterized.named_parameters(*cases(CHECKS, STEPS))
    def test_shard_map(self, check_vma, step):
        (step, num_tokens), mesh = step, make_mesh(MODES["auto"])
        arrays, layout = arguments(num_tokens), specs("x", "y")
        out = P(None, *layout[1]) if step is several_steps else layout[1]
        mapped = jax.shard_map(step, mesh=mesh, in_specs=layout, out_specs=(layout[0], out), check_vma=check_vma)
        compiled = jax.jit(mapped).lower(*arrays).compile()
        assert collectives(compiled) == set()
        assert_same_bits(jax.device_get(compiled(*arrays)), jax.device_get(jax.jit(step)(*arrays)))
