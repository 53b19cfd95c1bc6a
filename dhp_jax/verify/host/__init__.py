"""The proof for the CPU: runs the checks on the installed host kernels, and says what they found.

Four sorts of evidence, none of which stands for another: a run with every secret undefined, instruction counts, the
time that subnormals take, and a walk through the machine code that follows every secret on every path.
"""

from dhp_jax.verify.host.command import main as main
