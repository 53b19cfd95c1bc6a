"""The static proof: reads the machine code of CUDA kernels and says whether a secret can be seen in how it executes.

``python -m dhp_jax.verify`` checks the kernels of the installed dhp_jax, or the cubins, fatbins and libraries that it
is given. It needs neither a GPU nor JAX. SAFE means: for all inputs, no secret reaches a branch, an address, a guard
that it may not reach, or an instruction whose latency may depend on it, under the assumptions of SECURITY.md and those
in the report. What the model does not know makes a kernel UNKNOWN, never SAFE.

From the file to the verdict::

    image.py         a file -> cubins
    cubin.py         a cubin -> kernels: code, parameters, resources          (elf.py, policy.py)
    disassembly.py   code -> instructions, checked against the bytes           (instruction.py)
    liveness.py      ... and against nvdisasm's own account of reads and writes (opcodes.py, layout.py, registers.py)
    program.py       instructions -> control-flow graph
    taint.py         graph -> what is secret where, over all paths             (transfer.py, state.py, memory.py)
    rules/           what is secret where -> findings                         (site.py)
    analysis.py      all of this for one kernel -> report                     (report.py, branches.py)

Around it: check.py runs it on files, in parallel, with a cache (cache.py); text.py and sarif.py write reports down.

``python -m dhp_jax.verify --host`` proves the CPU kernels, by other means: host/.
"""

from dhp_jax.verify.check import verify_image, verify_images
from dhp_jax.verify.policy import Part, Policies, Policy
from dhp_jax.verify.report import Finding, KernelReport, Line, PathStep
from dhp_jax.verify.verdict import UnverifiableError, Verdict

__all__ = [
    "Finding",
    "KernelReport",
    "Line",
    "Part",
    "PathStep",
    "Policies",
    "Policy",
    "UnverifiableError",
    "Verdict",
    "verify_image",
    "verify_images",
]
