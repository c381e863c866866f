"""python -m fuzz --minutes=30 [--surface=NAME] [--seed=N]: fresh inputs for all surfaces in turn, and what was found.

With a surface and a seed: that search once more, and the smallest input that shows its finding.
"""

import argparse
import logging
import os
import random
import resource
import sys
import time
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH = 50  # inputs of one search
MOST_BYTES = 16 << 30  # of data: what asks for more gets a MemoryError, and the machine lives


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--surface", default="")
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)

    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # programs are compiled, and hardly run
    from fuzz.search import Tally, search
    from fuzz.surfaces import SURFACES

    chosen = [SURFACES[given.surface]] if given.surface else list(SURFACES.values())
    tallies = {surface.name: Tally() for surface in chosen}
    end, fresh = time.monotonic() + 60 * given.minutes, random.SystemRandom()
    share = 60 * given.minutes / len(chosen) / 4  # of a turn: each surface comes up four times
    if given.seed is not None:
        search(chosen[0], given.seed, BATCH, tallies[chosen[0].name], again=True)
        end = 0
    while time.monotonic() < end:
        for surface in chosen:
            until = min(time.monotonic() + share, end)
            while time.monotonic() < until:
                known = set(tallies[surface.name].findings)
                search(surface, fresh.randrange(2**32), BATCH, tallies[surface.name])
                for place in tallies[surface.name].findings.keys() - known:
                    print(f"FINDING in {surface.name}: {tallies[surface.name].findings[place]}\n", flush=True)
    print(f"{'surface':<16}{'tried':>9}{'worked':>9}{'refused':>9}{'findings':>10}{'most s':>9}{'most MB':>9}")
    for name, tally in tallies.items():
        print(
            f"{name:<16}{tally.tried:9}{tally.worked:9}{tally.refused:9}{len(tally.findings):10}{tally.seconds:9.2f}"
            f"{tally.megabytes:9.0f}"
        )
    if given.seed is not None:
        print(*tallies[chosen[0].name].findings.values(), sep="\n")
    return 1 if any(tally.findings for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
