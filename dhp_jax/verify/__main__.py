"""`python -m dhp_jax.verify`: is what was compiled constant-time?

Exit status 0: SAFE. 1: LEAK, a secret can be seen. 2: UNKNOWN, the model does not cover something; that is no pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from dhp_jax.verify import host, policy, report, sarif, text
from dhp_jax.verify.cache import Cache, Fresh
from dhp_jax.verify.check import Progress, verify_images
from dhp_jax.verify.policy import Policies
from dhp_jax.verify.verdict import UnverifiableError, Verdict

_OWN_POLICY = pathlib.Path(__file__).parent / "policy.toml"
LIBRARY = "libdhp_kernels"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return host.main(arguments[1:]) if arguments[:1] == ["--host"] else _verify(_parser().parse_args(arguments))
    except BrokenPipeError:  # whoever read the report has gone; nothing more can be said to them
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        return Verdict.UNKNOWN.value
    except Exception:
        # Python would end with status 1, which says LEAK.
        traceback.print_exc()
        print("UNKNOWN: the analyser failed. Please report it, with the file.")
        return Verdict.UNKNOWN.value


def _verify(options: argparse.Namespace) -> int:
    try:
        reports = verify_images(
            options.files or [installed_library()],
            _policies(options),
            processes=options.jobs,
            cache=Fresh(options.keep) if options.keep else None if options.no_cache else Cache.of_user(),
            progress=_progress(),
        )
    except UnverifiableError as problem:
        reports = [report.unknown("dhp_jax", problem.problem, problem.remedy)]
    if options.json:
        print(json.dumps([report.to_json(kernel) for kernel in reports], indent=1), flush=True)
    elif options.sarif:
        print(json.dumps(sarif.to_sarif(reports), indent=1), flush=True)
    else:
        print(text.render(reports), end="", flush=True)
    return Verdict.of_all(kernel.verdict for kernel in reports).value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m dhp_jax.verify",
        description=__doc__,
        epilog="--host as the first argument proves the CPU kernels instead; its own options follow it.",
    )
    parser.add_argument("files", nargs="*", help="cubins, fatbins, libraries; without any, the installed dhp_jax")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write a list of kernels as JSON")
    form.add_argument("--sarif", action="store_true", help="write SARIF 2.1.0")
    parser.add_argument(
        "--policy", type=pathlib.Path, help="which parameters are secret or public; default: our own kernels'"
    )
    fresh = parser.add_mutually_exclusive_group()
    fresh.add_argument("--no-cache", action="store_true", help="believe no earlier verdict, and keep none")
    fresh.add_argument(
        "--keep", type=pathlib.Path, metavar="FOLDER", help="believe no earlier verdict, and keep the new ones there"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that work at once")
    return parser


def _policies(options: argparse.Namespace) -> Policies:
    """Our own policy is strict about our own library only: other people's kernels are not in it."""
    policies = policy.read(options.policy) if options.policy else own_policies()
    return policies if options.policy or not options.files else dataclasses.replace(policies, strict=False)


def own_policies() -> Policies:
    """What is secret and public in the kernels of dhp_jax."""
    return policy.read(_OWN_POLICY)


def installed_library(name: str | None = None) -> pathlib.Path:
    """A library of the installed dhp_jax, that of its kernels by default; raises UnverifiableError without one."""
    name = name or LIBRARY
    beside = list(pathlib.Path(__file__).parent.parent.glob(f"{name}.*"))
    try:
        listed = importlib.metadata.files("dhp_jax") or []
        beside += [pathlib.Path(str(path.locate())) for path in listed if path.name.startswith(f"{name}.")]
    except importlib.metadata.PackageNotFoundError:
        pass
    for path in beside:
        if path.is_file():
            return path
    raise UnverifiableError(
        f"no {name} belongs to this dhp_jax", "Install it with its kernels (BUILD.md), or name a file."
    )


def _progress() -> Progress | None:
    """A bar on a terminal: tqdm's where it is installed."""
    if not sys.stderr.isatty():
        return None
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return lambda done, total: print(f"\r{done}/{total} kernels", end="" if done < total else "\n", file=sys.stderr)
    bar = tqdm(unit="kernel", leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


if __name__ == "__main__":
    gc.disable()  # as in the workers of check.py
    sys.exit(main())
