"""Small kernels written in SASS, for tests of the verifier: no compiler, no disassembler."""

from dhp_jax.verify import Policy, cubin, disassembly
from dhp_jax.verify import instruction as parser
from dhp_jax.verify.analysis import verify_kernel
from dhp_jax.verify.liveness import Life
from dhp_jax.verify.policy import Parameter

NAME = "kernel"
PARAMETER_BASE = 0x210  # of sm_90a: parameter i, eight bytes each, lies at c[0x0][0x210 + 8 * i]
NO_SCOREBOARD = 7 << 110
_PARAMETERS = 4


def kernel(text, architecture="sm_90a", scoreboards=()):
    """The kernel that `text` describes, one instruction or one `label:` a line.

    Args:
        text: an EXIT and the padding after it are added.
        architecture: such as "sm_90a".
        scoreboards: addresses of instructions that signal a scoreboard.
    """
    labels, code = {NAME: 0}, []
    for line in [*filter(None, map(str.strip, text.splitlines())), "EXIT", "end:", "BRA `(end)"]:
        if line.endswith(":"):
            labels[line[:-1]] = len(code) * parser.SIZE
            continue
        address = len(code) * parser.SIZE
        encoding = (0 if address in scoreboards else NO_SCOREBOARD).to_bytes(parser.SIZE, "little")
        life = Life(line, frozenset(), frozenset())
        frames = (disassembly.Frame("kernel.cu", len(code) + 1),)
        code.append(disassembly.Listed(parser.parse(address, line), encoding, frames, life))
    return cubin.Kernel(
        symbol=NAME,
        architecture=architecture,
        ptxas="13.0.88",
        code=b"".join(listed.encoding for listed in code),
        listing=disassembly.Listing(f".text.{NAME}", tuple(code), labels),
        parameters=tuple(Parameter(index, 8 * index, 8) for index in range(_PARAMETERS)),
        parameter_base=PARAMETER_BASE,
        registers=8,
        shared_bytes=0,
        stack_bytes=0,
    )


def report(text, policy=None, **options):
    """What the verifier says of the kernel that `text` describes."""
    return verify_kernel(kernel(text, **options), policy or Policy())


def findings(text, policy=None, **options):
    """(rule, instruction) of each finding."""
    return [(finding.rule, finding.instruction) for finding in report(text, policy, **options).findings]


def problems(text, policy=None, **options):
    """What the model does not cover."""
    return [problem.problem for problem in report(text, policy, **options).problems]
