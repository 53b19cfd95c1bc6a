"""Seven loops on a live machine: is this installation correct, constant-time, repeatable, and how fast?

``python -m dhp_jax.validate`` runs them and writes one report; docs/validate.md says what each looks at.

From the command to the clearance line::

    __main__.py      the command line
    runner.py        one child process for each loop; a child that dies fails what it was at     (_loop.py)
    plan.py          the loops, their parts, and the checks without which nothing is cleared
    store.py         what each part said, kept in the results folder, so that a killed run goes on
    outcome.py       PASS, FAIL, UNKNOWN, SKIPPED
    verdict.py       all checks -> clearance or what is missing, and the exit status
    report.py        Markdown, JSON, and one HTML page                                           (page.py, svg.py)

The parts, by loop: 1 analyze.py; 2 build.py; 3 conformance.py; 4 benchmark.py; 5 roofline.py; 6 counters.py (gate 1),
proof.py (gate 2), repeat.py (gate 3), timing.py, sanitize.py, memory.py. They share calls.py (attention calls, and the
sorts of secrets that they are made with), statistics.py and machine.py.

Each check has a control that it must catch, run with it: kernels that leak or do not repeat, which lie in a library of
their own (_controls.py). Where one is not caught the run is void.
"""
