"""How steady a machine itself is at a camera's rate: p99 / p50 of one fixed matrix product.

Nothing of this package runs here: what the node is measured at on a shared machine can hardly be
steadier than this.

    python -m benchmarks.machine_steadiness --threads 2
"""

from __future__ import annotations

import argparse
import time

import torch

from difiisr_ros.stream_statistics import percentile

SIDE = 900  # about 25 ms for two products on two cores of 2020
CALLS = 270


def main(rate: float, threads: int) -> None:
    """Call it ``CALLS`` times at ``rate`` Hz and print the percentiles."""
    torch.set_num_threads(threads)
    factor = torch.randn(SIDE, SIDE)
    taken, due = [], time.monotonic()
    for _ in range(CALLS):
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        started = time.monotonic()
        for _ in range(2):
            factor @ factor
        taken.append(time.monotonic() - started)
    p50, p90, p99 = (1e3 * percentile(taken, p) for p in (50, 90, 99))
    print(f"p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f} ms; p99 / p50 {p99 / p50:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=9.0, help="Hz (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    main(options.rate, options.threads)
