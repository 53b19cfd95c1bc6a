"""What the kernels that ship are made of: no spill, no call, no jump table, no slow path of a division or a root."""

import zoo
from absl.testing import parameterized

from dhp_jax.verify import cubin

# And why: local memory shows that registers were spilled; the others begin a way that only some operands take, or one
# that the proof follows at a cost.
_FORBIDDEN = {"LDL", "STL", "CALL", "BRX", "JMX", "FCHK"}
_MOST_REGISTERS = 255


def _opcodes(kernel):
    return {listed.instruction.opcode for listed in kernel.listing.code if listed.life is not None}


class ShippedCodeTest(parameterized.TestCase):
    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_opcodes(self, architecture):
        found = {kernel.name: sorted(_opcodes(kernel) & _FORBIDDEN) for kernel in zoo.shipped_kernels(architecture)}
        assert {name: opcodes for name, opcodes in found.items() if opcodes} == {}

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_resources(self, architecture):
        for kernel in zoo.shipped_kernels(architecture):
            assert kernel.stack_bytes == 0, kernel.name
            assert 0 < kernel.registers <= _MOST_REGISTERS, kernel.name

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_products_run_on_tensor_cores(self, architecture):
        for kernel in zoo.shipped_kernels(architecture):
            assert ("HMMA" in _opcodes(kernel)) != ("attention_bwd_delta" in kernel.name), kernel.name

    def test_control_forbidden_opcodes_are_seen(self):
        seen = set()
        for file in zoo.files():
            if not file.stem.endswith(zoo.HOPPER_ONLY):
                for kernel in cubin.kernels(zoo.cubin(file, "sm_80").read_bytes()):
                    seen |= _opcodes(kernel) & _FORBIDDEN
        assert {"LDL", "STL", "CALL", "BRX", "FCHK"} <= seen
