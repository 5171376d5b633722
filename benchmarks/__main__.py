"""``python -m benchmarks``: run the comparison and print it."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

from rich.console import Console

from benchmarks.worker import use_threads

PEERS = ("shap", "captum")
NEEDED = ("torch", *PEERS)
WIDTH = 132


def main() -> int:
    """Parse the command line, measure, print; 1 where a side failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one round on fewer samples and references, under a minute"
    )
    parser.add_argument("--rounds", type=int, help="turns of every side (3; with --quick 1)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads of every side (2)")
    parser.add_argument(
        "--case", action="append", choices=("mlp", "cnn", "resnet18"), help="only this one (repeatable)"
    )
    parser.add_argument("--without", action="append", default=[], choices=PEERS, help="leave a peer out (repeatable)")
    options = parser.parse_args()

    missing = [name for name in NEEDED if name not in options.without and find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed: pip install 'deepshap-ir[bench]'", file=sys.stderr)
        return 2
    # Before torch or onnxruntime is imported: they read the number of threads when they start.
    use_threads(options.threads)
    from benchmarks.cases import cases
    from benchmarks.compare import compare
    from benchmarks.table import print_heading, print_result, print_summary

    console = Console()
    console.width = max(console.width, WIDTH)
    rounds = options.rounds or (1 if options.quick else 3)
    print_heading(console, rounds, options.threads)
    results = []
    with console.status("") as status:
        for name, case in cases(options.quick, without=options.without).items():
            if options.case is None or name in options.case:
                results.append(compare(case, rounds, options.threads, status.update))
                print_result(console, results[-1])
    print_summary(console, results)
    return int(any(side.failure for result in results for side in result.sides.values()))


if __name__ == "__main__":
    sys.exit(main())
