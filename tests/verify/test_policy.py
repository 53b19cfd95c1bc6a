"""A policy says what is secret, for which kernel and why; one that cannot be acted on is refused."""

import pathlib
import tempfile
import tomllib

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import Part, Policies, Policy, UnverifiableError, policy
from dhp_jax.verify.policy import Parameter


def _read(text):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "policy.toml")
        path.write_text(text, encoding="utf-8")
        return policy.read(path)


class ReadTest(parameterized.TestCase):
    def test_all_that_a_file_can_say(self):
        policies = _read("""
            strict = true
            [[kernel]]
            name = "first_*"
            parameter_bytes = [24, 32]
            reason = "shapes"
            [[kernel.secret]]
            parameter = 0
            offset = 16
            size = 8
            reason = "a length"
            [[kernel.public_buffer]]
            parameter = 1
            reason = "pages"
            [kernel.public_constants]
            reason = "tables"
            [kernel.guarded_arithmetic]
            reason = "cycles"
            [[kernel]]
            name = "second"
            reason = "nothing secret"
        """)
        assert policies == Policies(
            entries=(
                Policy(
                    name="first_*",
                    reason="shapes",
                    secrets=(Part(parameter=0, offset=16, size=8, reason="a length"),),
                    public_buffers=(Part(parameter=1, reason="pages"),),
                    public_constants="tables",
                    guarded_arithmetic="cycles",
                    parameter_bytes=(24, 32),
                ),
                Policy(name="second", reason="nothing secret"),
            ),
            strict=True,
        )

    def test_example_in_the_docstring_is_one(self):
        example = policy.__doc__.partition("::\n\n")[2]
        assert len(_read(example).entries) == 1

    @parameterized.named_parameters(
        ("no_toml", "[[kernel", "cannot be read"),
        ("unknown_key", "secrets = 1", "unknown keys"),
        ("unknown_key_of_a_kernel", "[[kernel]]\nname='a'\nreason='b'\nsecrets=[]", "unknown keys"),
        (
            "unknown_key_of_a_part",
            "[[kernel]]\nname='a'\nreason='b'\nsecret=[{parameter=0,reason='c',bytes=4}]",
            "cannot be read",
        ),
        (
            "unknown_key_of_a_permission",
            "[[kernel]]\nname='a'\nreason='b'\nguarded_arithmetic={reason='c',opcodes=['FFMA']}",
            "unknown keys",
        ),
        (
            "empty_reason_of_a_permission",
            "[[kernel]]\nname='a'\nreason='b'\nguarded_arithmetic={reason=''}",
            "an empty reason",
        ),
        ("no_reason", "[[kernel]]\nname='a'", "reason"),
        ("no_reason_of_a_part", "[[kernel]]\nname='a'\nreason='b'\nsecret=[{parameter=0}]", "reason"),
        ("no_name", "[[kernel]]\nreason='b'", "name"),
    )
    def test_file_that_cannot_be_acted_on(self, text, problem):
        with pytest.raises(UnverifiableError, match=problem) as refusal:
            _read(text)
        assert "verify/policy.py shows" in refusal.value.remedy

    def test_missing_file(self):
        with pytest.raises(UnverifiableError, match="cannot be read"):
            policy.read(pathlib.Path("no/such/file"))


class ChoiceTest(parameterized.TestCase):
    @parameterized.parameters(
        ("void dhp::attention_fwd<dhp::Config<(dhp::DType)2> >(dhp::Params)", "attention_fwd"),
        ("cluster_exchange(TensorMap, float*)", "cluster_exchange"),
        ("void (anonymous namespace)::inner<int, f<1>()>(int (*)(float))", "inner"),
        ("plain_c", "plain_c"),
    )
    def test_name_of_a_kernel(self, kernel, name):
        assert policy.function_name(kernel) == name

    def test_first_entry_that_fits(self):
        policies = Policies((Policy(name="a*", reason="1"), Policy(name="ab", reason="2")))
        assert policies.of("void ns::ab<3>(int)").reason == "1"

    def test_kernel_without_entry(self):
        assert Policies().of("anything(int)") == Policy()

    def test_kernel_without_entry_where_all_must_have_one(self):
        with pytest.raises(UnverifiableError, match="no policy names the kernel anything") as refusal:
            Policies(strict=True).of("anything(int)")
        assert "[[kernel]]" in refusal.value.remedy


class PartTest(parameterized.TestCase):
    _PARAMETERS = (Parameter(0, 0, 8), Parameter(1, 8, 48))

    @parameterized.parameters(
        (Part(1, ""), range(8, 56)),
        (Part(1, "", offset=16), range(24, 56)),
        (Part(1, "", offset=16, size=4), range(24, 28)),
    )
    def test_bytes(self, part, expected):
        assert part.span(self._PARAMETERS) == expected

    @parameterized.parameters(
        Part(2, ""), Part(0, "", offset=8), Part(0, "", size=9), Part(1, "", offset=-4), Part(1, "", size=0)
    )
    def test_bytes_that_are_not_there(self, part):
        with pytest.raises(UnverifiableError, match=r"the policy names .* have \[8, 48\] bytes"):
            part.span(self._PARAMETERS)

    def test_description_gives_every_reason(self):
        text = Policy("k", "shapes", (Part(0, "a length"),), (Part(1, "pages"),), "tables").describe()
        for reason in ("shapes", "a length", "pages", "tables"):
            assert reason in text


class OwnPolicyTest(parameterized.TestCase):
    """The policy in the wheel names every kernel that ships, and no other."""

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_every_kernel_has_an_entry_that_fits(self, architecture):
        policies = policy.read(zoo.POLICY)
        assert policies.strict
        for kernel in zoo.shipped_kernels(architecture):
            entry = policies.of(kernel.name)
            assert entry.parameter_bytes
            entry.check(kernel.parameters)

    def test_every_entry_has_a_kernel(self):
        names = {policy.function_name(kernel.name) for kernel in zoo.shipped_kernels("sm_90a")}
        assert {entry.name for entry in policy.read(zoo.POLICY).entries} <= names

    def test_changed_parameters_are_noticed(self):
        (entry, *_) = policy.read(zoo.POLICY).entries
        (size,) = entry.parameter_bytes
        with pytest.raises(UnverifiableError, match=rf"take {size + 8} bytes; the policy was written for \[{size}\]"):
            entry.check((Parameter(0, 0, size + 8),))
        entry.check((Parameter(0, 0, size),))

    def test_nothing_is_public_that_is_read_from_memory(self):
        data = tomllib.loads(zoo.POLICY.read_text(encoding="utf-8"))
        assert not any({"public_buffer", "public_constants"} & set(kernel) for kernel in data["kernel"])
