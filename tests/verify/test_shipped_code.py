"""What the kernels that ship are made of: no spill, no call, no jump table, no slow path of a division or a root."""

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import cubin, policy

# And why: local memory shows that registers were spilled; the others begin a way that only some operands take, or one
# that the proof follows at a cost.
_FORBIDDEN = {"LDL", "STL", "CALL", "BRX", "JMX", "FCHK"}
_MOST_REGISTERS = 255


def _opcodes(kernel):
    return {listed.instruction.opcode for listed in kernel.listing.code if listed.life is not None}


def _products(name):
    """The instructions by which a kernel multiplies matrices: those of a warp or, on Hopper, of a warpgroup, whose 64
    rows would be idle for few query tokens.
    """
    if name in (
        "attention_bwd_delta",
        "attention_fwd_combine_sm90",
        "attention_fwd_mask_bits",
        "attention_fwd_real_rows",
    ):
        return set()
    return {"HGMMA"} if name.endswith("_sm90") and "decode" not in name else {"HMMA"}


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
            assert _opcodes(kernel) & {"HMMA", "HGMMA"} == _products(policy.function_name(kernel.name)), kernel.name

    @parameterized.parameters(
        ("spill.cu", "sm_80", r"spill"),
        ("serialised.cu", "sm_90a", r"C7511.*ptxas runs products of a warpgroup one after the other"),
    )
    def test_control_the_build_refuses(self, name, architecture, reason):
        with pytest.raises(pytest.fail.Exception, match=f"(?s)does not compile.*{reason}"):
            zoo.as_shipped(zoo.FOLDER / name, architecture)

    def test_control_proper_products_are_not_refused(self):
        assert zoo.as_shipped(zoo.FOLDER / "serialised.cu", "sm_90a", "-DPROPER").exists()

    def test_control_forbidden_opcodes_are_seen(self):
        seen = set()
        for file in zoo.files():
            if not file.stem.endswith(zoo.HOPPER_ONLY):
                for kernel in cubin.kernels(zoo.cubin(file, "sm_80").read_bytes()):
                    seen |= _opcodes(kernel) & _FORBIDDEN
        assert {"LDL", "STL", "CALL", "BRX", "FCHK"} <= seen
