"""Counts, under callgrind, how often each instruction of the kernels is executed: equal for all secrets.

A secret that decides only an address, or only a latency, does not show here; a secret that decides what is executed
does, on whatever path. Counts compare runs of one process at the same addresses, so they must be equal to the last one.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence

from dhp_jax.verify.host.controls import CONTROLS, missed
from dhp_jax.verify.host.driver import KERNELS, Driver, valgrind
from dhp_jax.verify.host.verdict import Finding, Result
from dhp_jax.verify.verdict import UnverifiableError, Verdict

EVIDENCE = "counts"
CONTROL_CALL = "small_float32"

_TRIGGER = "desc: Trigger: Client Request: "
_OPTIONS = (
    "--collect-atstart=no",
    "--dump-instr=yes",
    "--dump-line=no",
    "--compress-pos=no",
    "--compress-strings=no",
)

Profile = Counter[tuple[str, int]]  # (file, address in it) -> how often that instruction was executed


def run_counted(driver: Driver, mode: str, *arguments: str) -> dict[str, Profile]:
    """Runs a mode of the driver under callgrind; returns its profiles by their labels.

    Raises:
      UnverifiableError: callgrind is missing, or a profile is.
    """
    with tempfile.TemporaryDirectory() as folder:
        under = valgrind("callgrind", *_OPTIONS, f"--callgrind-out-file={folder}/profile")
        rows = driver.run(mode, *arguments, under=under)
        profiles = dict(_read(path) for path in sorted(pathlib.Path(folder).iterdir()) if path.name != "profile")
    missing = {"\t".join(fields) for fields in rows} - profiles.keys()
    if missing or not profiles or not all(profiles.values()):
        raise UnverifiableError(
            f"callgrind wrote {len(profiles)} profiles for {len(rows)} runs, and each must have one that is not empty; "
            "check its version: 3.19 is known to work"
        )
    return profiles


def _read(path: pathlib.Path) -> tuple[str, Profile]:
    """The label and the counts of one profile, in callgrind's format (its manual has it)."""
    label, file = "", ""
    profile: Profile = Counter()
    skip = False
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("0x"):
                if not skip:
                    address, count = line.split()
                    profile[file, int(address, 16)] += int(count)
                skip = False
            elif line.startswith("calls="):
                skip = True  # the next line has what the called function cost, which it counts itself
            elif line.startswith("ob="):
                file = pathlib.PurePath(line[3:].strip()).name
            elif line.startswith(_TRIGGER):
                label = line.removeprefix(_TRIGGER).strip()
    return label, profile


def covered(driver: Driver, kernels: str, calls: Sequence[str]) -> set[int]:
    """Addresses in the library of all instructions that the kernels of one instruction set execute in some calls."""
    (profile,) = run_counted(driver, "cover", f"--kernels={kernels}", *(f"--call={call}" for call in calls)).values()
    return {address for file, address in profile if file == driver.library.name}


def _differences(profiles: dict[str, Profile]) -> Iterator[Finding]:
    """One finding for each run whose profile is not that of the first run of the same kernel and call."""
    first: dict[str, tuple[str, Profile]] = {}
    for label, profile in profiles.items():
        call, _, secret = label.rpartition("\t")
        first_secret, expected = first.setdefault(call, (secret, profile))
        if profile == expected:
            continue
        places = sorted(place for place in profile.keys() | expected.keys() if profile[place] != expected[place])
        file, address = places[0]
        yield Finding(
            Verdict.LEAK,
            "unequal-counts",
            call.replace("\t", " "),
            f"{len(places)} instructions are executed more or less often on secrets of sort {secret} than on "
            f"{first_secret}, such as {file}+{address:#x}: {profile[places[0]]} and {expected[places[0]]} times",
        )


def check(driver: Driver, kernels: str, calls: Sequence[str], calls_of_every_length: Sequence[str]) -> list[Result]:
    """The verdicts on the kernels of one instruction set.

    Args:
      driver: the driver.
      kernels: the instruction set.
      calls: calls to make with every sort of secret.
      calls_of_every_length: calls to make with every length.

    Raises:
      UnverifiableError: the check could not be made.
    """
    profiles: dict[str, Profile] = {}
    for mode, names in (("count", calls), ("count_lengths", calls_of_every_length)):
        if names:
            profiles |= run_counted(driver, mode, f"--kernels={kernels}", *(f"--call={name}" for name in names))
    results = []
    for kernel in KERNELS:
        own = {label: profile for label, profile in profiles.items() if label.split("\t")[1] == kernel}
        if not own:
            continue
        findings = tuple(_differences(own))
        executed = sum(profile.total() for profile in own.values())
        num_calls = len({label.rpartition("\t")[0] for label in own})
        detail = f"{len(own)} runs of {num_calls} calls, {executed:.2e} instructions"
        verdict = Verdict.of_all([Verdict.SAFE, *(finding.verdict for finding in findings)])
        results.append(Result(kernels, kernel, EVIDENCE, verdict, detail, findings))
    return results


def check_controls(driver: Driver, kernels: str) -> list[Finding]:
    """The controls of one instruction set whose counts did not differ as they must."""
    profiles = run_counted(driver, "count", f"--kernels={kernels}:", "--kernel=fwd", f"--call={CONTROL_CALL}")
    differing = {finding.place.partition(" ")[0].partition(":")[2] for finding in _differences(profiles)}
    message = "its counts must differ between sorts of secret, and are equal"
    return [missed(name, message) for name, c in CONTROLS.items() if c.counts_differ and name not in differing]
