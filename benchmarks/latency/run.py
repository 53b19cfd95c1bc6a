"""Times every opcode that the verifier admits secrets to, with operands of every sort, and writes the table.

    python benchmarks/latency/run.py --build-only                  compiles and checks the machine code; no GPU
    python benchmarks/latency/run.py --output benchmarks/results   on a machine with an sm_90 GPU
    python benchmarks/latency/run.py --judge FOLDER                judges cycles kept by --keep FOLDER again; no GPU

Needs the CUDA toolkit. Exit status: 0 the table was written and every control was seen, 1 some control was not seen,
2 a probe is void or nothing could be measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from latency import build, judge, sass, table

from dhp_jax.validate import machine

_MINUTES = 5


def main() -> int:
    """Builds, measures, judges and writes."""
    arguments = _parser().parse_args()
    try:
        program = (arguments.program or build.build(arguments.build)).resolve()
        manifest = build.checked(program)
        if arguments.build_only:
            print(f"{len(manifest['loops'])} kernels time what their cases say: {program}")
            return 0
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.judge or arguments.keep or pathlib.Path(scratch)
            if not arguments.judge:
                measure(program, folder, arguments.rounds, arguments.seed)
            provenance = json.loads((folder / "machine.json").read_text())
            judged = [judge.judge(case, cycles) for case, cycles in read(folder / "raw.jsonl")]
    except (sass.VoidProbeError, RuntimeError, OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    loops = manifest.pop("loops")
    provenance = {**provenance, **manifest}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.json").write_text(table.as_json(judged, provenance, loops))
    (arguments.output / f"{arguments.name}.md").write_text(table.as_page(judged, provenance))
    unseen = judge.unseen_controls(judged)
    print(table.rows(judged))
    print(f"controls not seen: {', '.join(unseen) or 'none'}")
    return 1 if unseen else 0


def measure(program: pathlib.Path, folder: pathlib.Path, rounds: int, seed: int) -> None:
    """Runs the program; leaves its cycles in raw.jsonl and the machine's record in machine.json.

    Args:
        program: the built program.
        folder: where the two files go.
        rounds: trials of each class of each case.
        seed: of the operands and of the order of trials.

    Raises:
        RuntimeError: the program failed, or there is no GPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine.facts()
    command = [str(program), "--run", str(folder / "raw.jsonl"), "--rounds", str(rounds), "--seed", str(seed)]
    with machine.clocks() as clocks:
        try:
            subprocess.run(command, check=True, timeout=60 * _MINUTES)
        except subprocess.SubprocessError as problem:
            raise RuntimeError(f"the measurement did not end well: {problem}") from None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"date": today, **facts, "rounds": rounds, "seed": seed, **clocks}
    (folder / "machine.json").write_text(json.dumps(record, indent=1) + "\n")


def read(raw: pathlib.Path) -> Iterator[tuple[dict[str, object], dict[str, list[int]]]]:
    """The cases and the cycles of their classes, as the program wrote them."""
    for line in raw.read_text().splitlines():
        case = json.loads(line)
        cycles = case.pop("cycles")
        yield case, cycles


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-only", action="store_true", help="compile, check the machine code, and stop")
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/latency"), help="where to compile")
    parser.add_argument(
        "--program", type=pathlib.Path, help="a program compiled before, with its manifest.json beside it"
    )
    parser.add_argument("--rounds", type=int, default=800, help="trials of each class of each case")
    parser.add_argument("--seed", type=int, default=1, help="of the operands and of the order of trials")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the cycles of all trials in this folder")
    parser.add_argument("--judge", type=pathlib.Path, help="judge cycles kept before; nothing is measured")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"), help="for the table")
    parser.add_argument("--name", default="latency", help="of the two files, without their endings")
    return parser


if __name__ == "__main__":
    sys.exit(main())
