"""Attention calls in a process of their own, for tools that watch one: `python -m dhp_jax.validate._one`.

--calls JSON .. --secrets A,B   runs calls with each sort of secrets: all with the first, all with the second, ..
--control NAME --secrets A,B    the same of a control kernel
--digests cuda|cpu CALL ...     prints the digests of the results of calls, as JSON
--suite all|but-outputs         a reduced suite for sanitizers: every kernel, small; which results the host reads
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says; returns the exit status."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = argparse.ArgumentParser("python -m dhp_jax.validate._one", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--calls", nargs="+", help="calls as JSON, see calls.py")
    what.add_argument("--control", choices=["leak"], help="name of a control kernel")
    what.add_argument("--digests", nargs="+", metavar="PLATFORM CALL", help="platform, then calls as JSON")
    what.add_argument("--suite", choices=["all", "but-outputs"], help="every kernel once; what the host reads")
    parser.add_argument("--secrets", default="", help="sorts of secrets, with commas between")
    options = parser.parse_args(arguments)
    secrets = [name for name in options.secrets.split(",") if name]
    if options.calls:
        return _calls(options.calls, secrets)
    if options.control:
        return _control(secrets)
    return _suite(options.suite) if options.suite else _digests(options.digests[0], options.digests[1:])


def _calls(texts: Sequence[str], secrets: Sequence[str]) -> int:
    import jax

    from dhp_jax.validate.calls import from_text

    calls = [from_text(text) for text in texts]
    # Compiled without a run: a tool that counts launches sees those with secrets and no other.
    programs = [call.program().lower(call.arrays("random")).compile() for call in calls]  # type: ignore[attr-defined]
    for secret in secrets:
        for call, run in zip(calls, programs, strict=True):
            arrays = jax.block_until_ready(jax.device_put(call.arrays(secret)))
            jax.block_until_ready(run(arrays))
    return 0


def _control(secrets: Sequence[str]) -> int:
    from dhp_jax.validate import _controls

    for secret in secrets:
        _controls.leak(*_controls.leak_arguments(secret))
    return 0


def _digests(platform: str, texts: Sequence[str]) -> int:
    import jax

    from dhp_jax.validate import gpu, repeat
    from dhp_jax.validate.calls import from_text

    found = {}
    with jax.default_device(gpu.cpu() if platform == "cpu" else jax.devices()[0]):
        for text in texts:
            call = from_text(text)
            found[text] = repeat.digest(call.program()(call.arrays("random")))
    print(json.dumps(found))
    return 0


def _suite(read: str) -> int:
    import numpy as np

    from dhp_jax.validate.calls import Call, every_call

    print("the suite begins", flush=True)
    whole_calls = every_call()
    for whole in whole_calls:
        is_causal = whole.is_causal or (whole.operands and whole.channels == 128)
        keys = 69 if whole.S == Call.S else whole.S
        call = dataclasses.replace(whole, B=Call.B, T=min(whole.T, 37), S=keys, is_causal=is_causal)
        results = call.program()(call.arrays("random"))
        # initcheck takes outputs for unwritten, see initcheck.xml.
        names = [name for name in results if name != "out" or read == "all"]
        values = {name: np.asarray(results[name], np.float32) for name in names}
        # The log-sum-exp of a row past its length is -inf.
        if any(np.isnan(x).any() if name == "lse" else not np.isfinite(x).all() for name, x in values.items()):
            print(f"not finite: {call}")
            return 1
    print(f"{len(whole_calls)} calls, all finite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
