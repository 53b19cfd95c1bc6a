"""`python -m dhp_jax.verify`: checks that the compiled kernels are constant-time, and exits with the verdict.

    --host    the CPU kernels; its own options follow (`--host --help`)

Exit status: 0 SAFE, 1 LEAK, 2 UNKNOWN.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dhp_jax.verify import host


def main(arguments: Sequence[str]) -> int:
    """Runs the check that the command line asks for, and returns its exit status."""
    if arguments[:1] == ["--host"]:
        return host.main(arguments[1:])
    print(
        f"dhp_jax.verify: {' '.join(arguments) or 'no option'} was passed; the check of the CUDA kernels is not built "
        "yet. Pass --host to check the CPU kernels.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
