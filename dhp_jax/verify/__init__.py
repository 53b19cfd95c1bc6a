"""Proofs that what was compiled is constant-time. Imports neither JAX nor anything else of dhp_jax."""
