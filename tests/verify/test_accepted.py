"""What is constant-time is found so: patterns of fast kernels, and every kernel that ships."""

import zoo
from absl.testing import parameterized

from dhp_jax.verify import Verdict, cubin, verify_image

PROBES = zoo.ROOT / "tests" / "verify" / "probes"


class AcceptedTest(parameterized.TestCase):
    """What fast Hopper kernels do is modelled, and found safe: nothing in it depends on a secret."""

    @parameterized.parameters(
        (
            "pipeline",
            "pipeline",
            {"USETMAXREG", "ELECT", "UTMALDG", "SYNCS", "NANOSLEEP", "HGMMA", "WARPGROUP", "UTMACCTL", "VOTEU"},
        ),
        ("cluster", "cluster_exchange", {"UCGABAR_ARV", "UCGABAR_WAIT", "STAS", "LD", "SYNCS", "UTMALDG", "MEMBAR"}),
        ("copies", "copy_groups", {"ACQBULK", "PREEXIT", "LDGSTS", "LDGDEPBAR", "DEPBAR", "VIMNMX3", "VIADDMNMX"}),
        ("copies", "bulk_copies", {"UBLKCP", "UTMASTG", "UTMACMDFLUSH", "FENCE", "ELECT"}),
        ("copies", "matrix_moves", {"LDSM", "STSM", "HMMA"}),
    )
    def test_probe(self, file, name, opcodes):
        path = zoo.cubin(PROBES / f"{file}.cu", "sm_90a")
        (report,) = (report for report in verify_image(path) if report.kernel.startswith(name))
        assert report.verdict is Verdict.SAFE, report
        (kernel,) = (kernel for kernel in cubin.kernels(path.read_bytes()) if kernel.name.startswith(name))
        assert opcodes <= {listed.instruction.opcode for listed in kernel.listing.code}

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_every_kernel_that_ships(self, architecture):
        reports = zoo.shipped_reports(architecture)
        assert len(reports) >= 50
        assert [report.kernel for report in reports if report.verdict is not Verdict.SAFE] == []
