"""The machine-code check of the CPU kernels reports each sort of leak, and lets pass what is none."""

import pathlib
import platform
import shutil
import subprocess
import tempfile

import pytest
from absl.testing import parameterized

from dhp_jax.verify.host import machine_code
from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.values import PUBLIC, SECRET, STACK, join, moved, moved_by, pointer
from dhp_jax.verify.host.x86 import Decoder
from dhp_jax.verify.verdict import UnverifiableError, Verdict

if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("SKIPPED: the machine-code check knows x86-64 only", allow_module_level=True)

# A library with one kernel of one phase, `task`.
_LIBRARY = """
  .intel_syntax noprefix
  .text
plan:
  lea rax, task[rip]
  mov [rdi+8], rax
  mov qword ptr [rdi], {tasks}
  mov rax, rdi
  ret
task:
  {start}
  {body}
  ret
{functions}
  .section .rodata
numbers: .quad 1, 2, 3, 4
letters: .string "test"
dhp_host_task_arguments: .string "{arguments}"
  .section .data.rel.ro, "aw"
  .align 8
dhp_host_kernel_tables: .quad kernels, 0
kernels: .quad letters, plan, 0, 0
targets: .quad task
  .globl dhp_host_kernel_tables, dhp_host_task_arguments
  .section .note.GNU-stack, ""
"""

# rdi: params, whose first word is the address of an array and whose second is a size; rsi: number of the task; rdx:
# scratch. Then rax: the array, rcx: the size, xmm0 and r8d: a secret.
_START = """
  mov rax, [rdi]
  mov rcx, [rdi+8]
  movss xmm0, [rax]
  movd r8d, xmm0
  movss [rdx], xmm0
"""
_FOLDER = tempfile.TemporaryDirectory()


def build(body, functions="", start=_START, arguments="pns", tasks="1"):
    """The path of a library with this task."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("SKIPPED: no C++ compiler to assemble with")
    source, library = pathlib.Path(_FOLDER.name, "task.s"), pathlib.Path(_FOLDER.name, "libtask.so")
    source.write_text(_LIBRARY.format(body=body, functions=functions, start=start, arguments=arguments, tasks=tasks))
    command = [compiler, "-shared", "-nostdlib", "-o", library, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def judge(library):
    elf = Elf(library)
    (kernels,) = machine_code.tables(elf)
    result, _ = machine_code.judge(elf, Decoder(elf), kernels, "fwd", machine_code.task_arguments(elf))
    return result


class LeakTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("branch", "test r8d, r8d\n je 1f\n nop\n1:", "secret-branch"),
        ("branch_on_a_float", "comiss xmm0, xmm0\n ja 1f\n nop\n1:", "secret-branch"),
        ("branch_on_a_carry", "add r8d, r8d\n mov r9d, 0\n adc r9d, 0\n test r9, r9\n jne 1f\n1:", "secret-branch"),
        ("branch_on_setcc", "cmp r8d, 3\n setl r9b\n test r9b, r9b\n jne 1f\n1:", "secret-branch"),
        ("branch_on_a_movmask", "movmskps r9d, xmm0\n test r9d, r9d\n jne 1f\n1:", "secret-branch"),
        (
            "branch_on_a_mask_register",
            "vpxor xmm1, xmm1, xmm1\n vcmpps k1, zmm0, zmm1, 1\n kortestw k1, k1\n jne 1f\n1:",
            "secret-branch",
        ),
        ("branch_on_a_test", "ptest xmm0, xmm0\n je 1f\n1:", "secret-branch"),
        ("loop_of_secret_length", "mov ecx, r8d\n1: dec rcx\n jne 1b", "secret-branch"),
        ("counter_that_loops", "mov rcx, r8\n1: nop\n loop 1b", "secret-branch"),
        ("load", "mov r9, [rax+r8*4]", "secret-address"),
        ("store", "mov dword ptr [rdx+r8*4], 0", "secret-address"),
        ("load_from_a_table", "lea r9, numbers[rip]\n and r8, 3\n mov r9, [r9+r8*8]", "secret-address"),
        ("prefetch", "prefetcht0 [rax+r8]", "secret-address"),
        ("gather", "vpcmpeqd ymm2, ymm2, ymm2\n vpgatherdd ymm1, [rax+ymm0*4], ymm2", "secret-address"),
        ("selected_pointer", "cmp r8d, 3\n cmovl rax, rdx\n mov r9, [rax]", "secret-address"),
        ("size_of_a_copy", "mov rdi, rdx\n mov rsi, rax\n mov rcx, r8\n rep movsb", "secret-address"),
        ("masked_load", "vcmpps k1, zmm0, zmm0, 1\n vmovups zmm1{k1}{z}, [rax]", "secret-mask"),
        ("masked_operand", "vcmpps k1, zmm0, zmm0, 1\n vaddps zmm1{k1}, zmm0, [rax]", "secret-mask"),
        ("masked_store", "vcmpps k1, zmm0, zmm0, 1\n vmovups [rdx]{k1}, zmm0", "secret-mask"),
        ("masked_load_of_avx", "vmaskmovps ymm1, ymm0, [rax]", "secret-mask"),
        ("mask_of_a_gather", "vpxor xmm1, xmm1, xmm1\n vpgatherdd ymm2, [rax+ymm1*4], ymm0", "secret-mask"),
        ("float_division", "divss xmm0, xmm0", "secret-latency"),
        ("vector_division", "vdivps zmm1, zmm1, zmm0", "secret-latency"),
        ("square_root", "sqrtss xmm0, xmm0", "secret-latency"),
        ("integer_division", "mov r9, rax\n mov eax, r8d\n cdq\n idiv ecx", "secret-latency"),
        ("call_through_a_secret", "lea r9, targets[rip]\n and r8, 1\n call [r9+r8*8]", "secret-target"),
        ("jump_to_a_secret", "jmp r8", "secret-target"),
        ("foreign_function", "sub rsp, 8\n call expf@plt\n add rsp, 8", "foreign-call"),
    )
    def test_is_reported(self, body, rule):
        result = judge(build(body))
        assert result.verdict is Verdict.LEAK
        assert rule in {finding.rule for finding in result.findings}

    def test_a_plan_that_depends_on_a_secret_is_reported(self):
        result = judge(build("", tasks="0\n mov r8, [rsi]\n mov r8d, [r8]\n mov [rdi], r8"))
        assert {finding.rule for finding in result.findings} == {"secret-plan"}


class HiddenLeakTest(parameterized.TestCase):
    """A secret is followed on its way to where it leaks."""

    @parameterized.named_parameters(
        ("the_stack", "mov [rsp-16], r8\n mov r9, [rsp-16]"),
        ("a_push", "push r8\n pop r9"),
        ("a_part_of_the_stack", "mov qword ptr [rsp-16], 0\n mov [rsp-14], r8w\n mov r9, [rsp-16]"),
        ("an_array_on_the_stack", "mov qword ptr [rsp-16], 0\n mov [rsp-24+rcx], r8d\n mov r9, [rsp-16]"),
        (
            "an_array_behind_an_address",
            "mov qword ptr [rsp-16], 0\n lea r10, [rsp-64]\n add r10, rcx\n mov [r10], r8d\n mov r9, [rsp-16]",
        ),
        ("scratch", "mov [rdx+rsi*4], r8d\n mov r9, [rdx+64]"),
        ("a_vector_register", "vmovd xmm5, r8d\n vpaddd ymm6, ymm5, ymm5\n vmovd r9d, xmm6"),
        ("a_lane", "vpxor xmm5, xmm5, xmm5\n vpinsrq xmm5, xmm5, r8, 1\n vpextrq r9, xmm5, 1"),
        (
            "an_upper_lane",
            "vpxor xmm5, xmm5, xmm5\n vinserti128 ymm5, ymm5, xmm0, 1\n vextracti128 xmm5, ymm5, 1\n vmovq r9, xmm5",
        ),
        ("a_vector_on_the_stack", "vpbroadcastd zmm5, r8d\n vmovups [rsp-64], zmm5\n mov r9, [rsp-32]"),
        (
            "a_masked_store_on_the_stack",
            "vmovups [rsp-64], zmm0\n mov r9d, 1\n kmovw k1, r9d\n vpxor xmm5, xmm5, xmm5\n"
            " vmovups [rsp-64]{k1}, zmm5\n mov r9, [rsp-32]",
        ),
        ("a_mask_register", "vcmpps k1, zmm0, zmm0, 1\n kmovw r9d, k1"),
        (
            "a_merging_mask",
            "vpxor xmm5, xmm5, xmm5\n vcmpps k1, zmm0, zmm0, 1\n vpaddd zmm5{k1}, zmm5, zmm5\n vmovd r9d, xmm5",
        ),
        ("a_conditional_move", "xor r9d, r9d\n test r8d, r8d\n cmovne r9, rcx"),
        ("a_partial_register", "mov r9, r8\n mov r9b, 0"),
        ("one_of_two_paths", "xor r9d, r9d\n test rcx, rcx\n je 2f\n mov r9d, r8d\n2:"),
        ("a_later_round_of_a_loop", "xor r9d, r9d\n xor r10d, r10d\n2: mov r9, r10\n mov r10, r8\n dec rcx\n jne 2b"),
        (
            "a_copy_to_the_stack",
            "mov qword ptr [rsp-16], 0\n lea rdi, [rsp-64]\n mov rsi, rax\n rep movsb\n mov r9, [rsp-16]",
        ),
        ("a_function", "sub rsp, 8\n call copy\n add rsp, 8", "copy: mov r9, r8\n ret"),
        ("an_argument_on_the_stack", "push r8\n call copy\n add rsp, 8", "copy: mov r9, [rsp+8]\n ret"),
        (
            "a_pointer_to_the_stack_of_the_caller",
            "sub rsp, 24\n mov qword ptr [rsp], 0\n mov r10, rsp\n call copy\n mov r9, [rsp]\n add rsp, 24",
            "copy: mov [r10], r8\n ret",
        ),
        (
            "the_stack_after_a_call",
            "mov qword ptr [rsp-16], 0\n sub rsp, 32\n call copy\n add rsp, 32\n mov r9, [rsp-56]",
            "copy: mov [rsp-16], r8\n ret",
        ),
        (
            "an_aligned_frame",
            "push rbp\n mov rbp, rsp\n and rsp, -64\n sub rsp, 64\n vmovups [rsp], zmm0\n mov r9, [rsp+8]\n leave",
        ),
    )
    def test_is_seen_through(self, body, functions=""):
        result = judge(build(body + "\n test r9, r9\n je 1f\n nop\n1:", functions))
        assert {finding.rule for finding in result.findings} == {"secret-branch"}


class HarmlessTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("arithmetic", "mulss xmm0, xmm0\n vfmadd231ps zmm1, zmm0, zmm0\n imul r8, r8\n shl r8, 3"),
        ("a_select", "vcmpps k1, zmm0, zmm0, 1\n vblendmps zmm1{k1}, zmm0, zmm0"),
        ("a_conditional_move", "test r8d, r8d\n cmovne r8, rcx"),
        ("a_public_branch", "test rcx, rcx\n je 1f\n nop\n1:"),
        ("a_public_division", "mov rax, rcx\n cqo\n idiv rcx"),
        ("a_public_index", "mov r9, [rax+rcx*8]\n mov [rdx+rsi*4], r9"),
        ("a_public_mask", "mov r9d, 7\n kmovw k1, r9d\n vmovups zmm1{k1}{z}, [rax]\n vmovups [rdx]{k1}, zmm1"),
        ("a_table_at_a_public_index", "lea r9, numbers[rip]\n mov r9, [r9+rcx*8]\n test r9, r9\n je 1f\n1:"),
        ("a_spilled_number", "mov [rsp-8], rcx\n movss [rsp-16], xmm0\n cmp qword ptr [rsp-8], 3\n je 1f\n1:"),
        ("a_spilled_byte", "test rcx, rcx\n setne [rsp-9]\n mov [rsp-8], r8\n cmp byte ptr [rsp-9], 0\n je 1f\n1:"),
        (
            "a_number_below_an_array",
            "mov [rsp-64], rcx\n mov [rsp-32+rcx], r8d\n mov r9, [rsp-64]\n test r9, r9\n je 1f\n1:",
        ),
        ("a_pushed_number", "push rcx\n mov [rsp-32+rcx], r8d\n pop r9\n test r9, r9\n je 1f\n1:"),
        (
            "an_address_in_a_vector",
            "vmovq xmm5, rax\n vpinsrq xmm5, xmm5, rdx, 1\n vpextrq r9, xmm5, 1\n mov r10, [r9]",
        ),
        (
            "params_in_a_vector",
            "vmovq xmm5, rdi\n vmovdqu [rsp-32], xmm5\n mov r9, [rsp-32]\n mov r9, [r9+8]\n test r9, r9\n je 1f\n1:",
        ),
        (
            "a_struct_on_the_stack",
            "sub rsp, 24\n mov [rsp], rdi\n mov r10, rsp\n call size\n add rsp, 24\n test r9, r9\n je 1f\n1:",
            "size: mov r9, [r10]\n mov r9, [r9+8]\n ret",
        ),
        (
            "a_frame_of_its_own",
            "sub rsp, 24\n mov [rsp], rcx\n call write\n mov r9, [rsp]\n add rsp, 24\n test r9, r9\n je 1f\n1:",
            "write: mov [rsp-32+rcx], r8d\n ret",
        ),
        ("a_loop", "1: add rax, 4\n mulss xmm0, [rax]\n dec rcx\n jne 1b\n movss [rdx], xmm0"),
        ("memcpy", "sub rsp, 8\n mov rdi, rdx\n mov rsi, rax\n mov rdx, rcx\n call memcpy@plt\n add rsp, 8"),
        (
            "an_aligned_frame",
            "push rbp\n mov rbp, rsp\n and rsp, -64\n sub rsp, 64\n mov [rsp], rcx\n cmp qword ptr [rsp], 0\n"
            " je 1f\n1: leave",
        ),
        ("a_constant_idiom", "vpternlogd zmm0, zmm0, zmm0, 255\n vmovd r9d, xmm0\n test r9d, r9d\n je 1f\n1:"),
    )
    def test_is_safe(self, body, functions=""):
        result = judge(build(body, functions))
        assert result.findings == ()
        assert result.verdict is Verdict.SAFE

    def test_a_task_may_wait_for_a_counter(self):
        start = "mov r10, [rdx+8]\n mov rdx, [rdx]\n" + _START
        wait = "1: pause\n cmp dword ptr [r10+rsi*4], 0\n jne 1b\n mov dword ptr [r10+rsi*4], 1"
        assert judge(build(wait, start=start, arguments="pn{sc}")).verdict is Verdict.SAFE


class UnknownTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("a_jump_table", "lea r9, targets[rip]\n jmp [r9+rcx*8]", "unfollowed-jump"),
        ("a_trap", "ud2", "unfollowed-jump"),
        ("recursion", "sub rsp, 8\n call again\n add rsp, 8", "unfollowed-jump", "again: call again\n ret"),
        ("an_unlisted_instruction", "rcpps xmm0, xmm0", "unlisted-instruction"),
        ("a_locked_instruction", "lock add [rdx], r8", "unlisted-instruction"),
        ("a_copy_of_the_x87_unit", "fld dword ptr [rax]\n fstp dword ptr [rdx]", "unlisted-instruction"),
        ("a_lost_stack_pointer", "mov rsp, rcx", "unfollowed-stack"),
        ("an_unbalanced_stack", "push rcx", "unfollowed-stack"),
        ("another_mode_of_arithmetic", "ldmxcsr numbers[rip]", "changed-mode"),
        ("a_thread_local_secret", "mov fs:[8], r8", "unfollowed-write"),
        ("a_secret_in_the_params", "mov [rdi], r8", "unfollowed-write"),
        ("nothing_secret", "", "nothing-secret", "", ""),
    )
    def test_is_unknown(self, body, rule, functions="", start=_START):
        result = judge(build(body, functions, start))
        assert result.verdict is Verdict.UNKNOWN
        assert rule in {finding.rule for finding in result.findings}

    def test_a_secret_counter_is_unknown(self):
        start = "mov r10, [rdx+8]\n mov rdx, [rdx]\n" + _START
        result = judge(build("mov [r10], r8d", start=start, arguments="pn{sc}"))
        assert {finding.rule for finding in result.findings} == {"unfollowed-write"}

    def test_what_is_no_instruction_is_unknown(self):
        with pytest.raises(UnverifiableError, match="are no instruction"):
            judge(build(".byte 0x06"))

    def test_a_truncated_file_is_unknown(self):
        library = build("")
        whole = library.read_bytes()
        for size in (0, 10, 64, len(whole) // 3, len(whole) // 2):
            library.write_bytes(whole[:size])
            with pytest.raises(UnverifiableError, match=r"cannot be read .*Reinstall the package"):
                judge(library)

    def test_another_file_is_unknown(self):
        library = build("")
        library.write_text("print('no library')\n" * 10)
        with pytest.raises(UnverifiableError, match="not that of an ELF file for x86-64"):
            judge(library)

    def test_arguments_of_an_unknown_sort_are_unknown(self):
        with pytest.raises(UnverifiableError, match=r"says of the arguments of a task 'pnx'.*kernel_tables\.h"):
            judge(build("", arguments="pnx"))

    def test_a_library_that_lacks_a_kernel_is_unknown(self):
        with pytest.raises(UnverifiableError, match="it must have one plan for each of fwd, bwd, bwd_bias"):
            machine_code.check(build(""), "test")

    def test_a_library_without_kernels_is_unknown(self):
        library = build("")
        library.write_bytes(library.read_bytes().replace(b"dhp_host_kernel_tables", b"dhp_host_kernel_tablet"))
        with pytest.raises(UnverifiableError, match="exports no table of host kernels"):
            judge(library)


class ValueTest(parameterized.TestCase):
    def test_a_secret_stays_secret(self):
        assert join(SECRET, PUBLIC) == join(PUBLIC, SECRET) == moved(SECRET, 8) == moved_by(PUBLIC, SECRET) == SECRET

    def test_where_two_pointers_meet_the_lower_place_is_kept(self):
        met = join(pointer(STACK, 16), pointer(STACK, 8))
        assert (met.offset, met.exact) == (8, False)

    def test_a_pointer_that_moves_down_ends_up_anywhere_in_its_region(self):
        met = pointer(STACK, 16)
        for _ in range(3):
            met = join(met, moved(met, -8))
        assert (met.region, met.offset) == (STACK, None)


class VerdictTest(parameterized.TestCase):
    @parameterized.parameters(
        ((), Verdict.UNKNOWN),
        ((Verdict.SAFE, Verdict.SAFE), Verdict.SAFE),
        ((Verdict.SAFE, Verdict.UNKNOWN), Verdict.UNKNOWN),
        ((Verdict.UNKNOWN, Verdict.LEAK, Verdict.SAFE), Verdict.LEAK),
    )
    def test_the_worst_counts(self, verdicts, expected):
        assert Verdict.of_all(verdicts) is expected
