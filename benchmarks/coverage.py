"""How often the report's intervals are right: coverage, false gains and widths, by simulation.

    python benchmarks/coverage.py [--quick]

Families of six methods and fine-tuning, one teacher and one ensemble, all equally good. So every true gain is 0, and
every gain that the report calls shown is false. All arms answer the same rows, right or wrong. Rows differ in
difficulty, mostly in the same way for all arms, and each training adds its own mistakes. A training's accuracy (80.7%
on average) differs from its arm's by a normal deviation with a standard deviation of 0, 0.5, 1 or 2 points: its seed.
As in a sweep, the best of the six is chosen on 1,000 validation rows from the same trainings, and then evaluated on the
test rows.

Each family is analysed by the report's own code (`raykd.reports.statistics.compare` at the level of `count_intervals`).
In "unequal" cases the seeds of one arm vary several times as much as the others'; in "contexts" cases five questions
share a context. For comparison, it also computes the report's earlier intervals: percentiles of a bootstrap crossed
over seeds and rows, with Bonferroni over the methods alone. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.stats import norm

from raykd.reports.statistics import compare, corrected_level

METHODS = [f"method {i}" for i in range(6)]
ARMS = ["finetune", *METHODS]
OTHERS = 2  # the teacher and the ensemble, which the best method is compared with
LEVEL = 0.95
INTERVALS = len(METHODS) * (1 + OTHERS)  # as raykd.reports.analysis.count_intervals has it
EASY, EASY_SD, ARM_SD, OWN_SD = 1.2, 1.3, 0.25, 0.4  # in probits: of rows, and what an arm and a training add
TOTAL_SD = float(np.sqrt(EASY_SD**2 + ARM_SD**2 + OWN_SD**2))
ACCURACY = float(norm.cdf(EASY / TOTAL_SD))
VALIDATION_ROWS = 1000
RATES = ("single", "single_wildest", "headline", "page", "false_gain", "false_beats")
RESAMPLES = 500  # of the earlier bootstrap


@dataclass(frozen=True)
class Case:
    """deviations: of the seeds of fine-tuning, then of the methods, in points of accuracy."""

    kind: str
    rows: int
    seeds: int
    deviations: tuple[float, ...]
    contexts: bool = False


def cases(quick: bool) -> list[Case]:
    rows, deviations, seeds = ((300, 10_000), (0.0, 2.0), (1, 3)) if quick else (
        (300, 1000, 10_000), (0.0, 0.5, 1.0, 2.0), (1, 2, 3, 5, 10)
    )  # fmt: skip
    found = [Case("equal", r, s, (d,) * 7) for r in rows for d in deviations for s in seeds]
    unequal = {
        "unequal: fine-tuning 2, methods 1": (2.0, *(1.0,) * 6),
        "unequal: fine-tuning 2, methods 0.5": (2.0, *(0.5,) * 6),
        "unequal: one method 2, others 0.5": (0.5, 2.0, *(0.5,) * 5),
        "unequal: three methods 2, others 0.5": (0.5, *(2.0,) * 3, *(0.5,) * 3),
    }
    for s in (3,) if quick else (2, 3, 5):
        found += [Case(kind, 10_000, s, values) for kind, values in unequal.items()]
        found += [Case("contexts of five", 1000, s, (d,) * 7, contexts=True) for d in (0.0, 1.0)]
    return found


def family(case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[int] | None, str]:
    """Test scores by arm (seeds, rows), the rows' contexts, and the method that is best on validation."""
    size = 5 if case.contexts else 1
    context = np.repeat(np.arange(case.rows // size), size)

    def draw(sd: float, *shape: int) -> np.ndarray:
        return np.float32(sd) * rng.standard_normal((*shape, case.rows), dtype=np.float32)

    def shared(sd: float) -> np.ndarray:
        """Of a row; with contexts, half of its variance is the context's."""
        if not case.contexts:
            return draw(sd)
        return np.sqrt(0.5) * (sd * rng.standard_normal(case.rows // size)[context] + draw(sd))

    easy, scores, validation = shared(EASY_SD), {}, {}
    for arm in (*ARMS, "teacher", "ensemble"):
        trained = arm in ARMS
        deviation = case.deviations[ARMS.index(arm)] / 100 if trained else 0.0
        accuracy = ACCURACY + deviation * rng.standard_normal((case.seeds if trained else 1, 1))
        skill = TOTAL_SD * norm.ppf(np.clip(accuracy, 0.01, 0.99)).astype(np.float32)
        scores[arm] = (easy + shared(ARM_SD) + skill + draw(OWN_SD, len(skill)) > 0).astype(np.float64)
        disagreement = 0.05 / VALIDATION_ROWS  # variance of an arm's mean there, apart from what all arms share
        validation[arm] = accuracy.mean() + np.sqrt(disagreement) * rng.standard_normal()
    return scores, context.tolist() if case.contexts else None, max(METHODS, key=lambda m: validation[m])


def crossed_bootstrap(scores: dict[str, np.ndarray], rng: np.random.Generator, resamples: int) -> dict[str, np.ndarray]:
    """Every arm's mean in each resample: rows drawn once for all arms, seeds of each arm, widened by n / (n - 1)."""
    rows = len(scores["finetune"][0])
    drawn = (np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(resamples))
    counts = np.stack(list(drawn)).astype(np.float32) / rows  # (resamples, rows)
    found = {}
    for arm, of_arm in scores.items():
        seeds = len(of_arm)
        means = of_arm.mean(1, keepdims=True)
        if seeds > 1:
            of_arm = of_arm + (np.sqrt(seeds / (seeds - 1)) - 1) * (means - means.mean())
        by_seed = counts @ of_arm.T.astype(np.float32)
        found[arm] = np.take_along_axis(by_seed, rng.integers(0, seeds, by_seed.shape), 1).mean(1)
    return found


def analyze(case: Case, rng: np.random.Generator, resamples: int) -> dict[str, float]:
    """The results of one family. Each value is a share or a width in points, to be averaged; NaN: not measured."""
    scores, contexts, best = family(case, rng)
    means = compare(scores, contexts, {"teacher", "ensemble"})

    def misses(gain: Any) -> bool:
        return not gain.low <= 0 <= gain.high

    level = corrected_level(INTERVALS, LEVEL)
    table = {m: means.gain(m, "finetune", level) for m in METHODS}
    headline = [table[best], *(means.gain(best, other, level) for other in ("teacher", "ensemble"))]
    single = [means.gain(m, "finetune", LEVEL) for m in METHODS]
    alike = [means.gain(m, "finetune", corrected_level(len(METHODS))) for m in METHODS]
    found = {
        "single": float(np.mean([misses(g) for g in single])),
        "single_wildest": float(misses(single[int(np.argmax(case.deviations[1:]))])),
        "headline": float(any(map(misses, headline))),
        "page": float(any(map(misses, (*table.values(), *headline)))),
        "false_gain": float(any(g.shown == 1 for g in table.values())),
        "false_beats": float(headline[1].shown == 1),
        "width": 100 * float(np.mean([g.high - g.low for g in table.values()])),
        "width_six": 100 * float(np.mean([g.high - g.low for g in alike])),
        "width_single": 100 * float(np.mean([g.high - g.low for g in single])),
    }
    if resamples:
        drawn = crossed_bootstrap(scores, rng, resamples)
        tail = (1 - corrected_level(len(METHODS))) / 2
        ends = {m: np.quantile(drawn[m] - drawn["finetune"], [tail, 1 - tail]) for m in METHODS}
        of_teacher = np.quantile(drawn[best] - drawn["teacher"], tail)
        found |= {
            "before_false_gain": float(any(low > 0 for low, _ in ends.values())),
            "before_false_beats": float(of_teacher > 0),
            "before_width": 100 * float(np.mean([high - low for low, high in ends.values()])),
        }
    return found


def measure(case: Case, families: int, before: int, resamples: int) -> dict[str, Any]:
    """before: number of families on which the earlier bootstrap is also run; none with contexts."""
    rng = np.random.default_rng([case.rows, case.seeds, *(int(10 * d) for d in case.deviations), case.contexts])
    found = [analyze(case, rng, resamples if i < before and not case.contexts else 0) for i in range(families)]
    values = {key: round(float(np.mean([f[key] for f in found if key in f])), 4) for key in found[0]}
    return {"kind": case.kind, "rows": case.rows, "seeds": case.seeds, "deviation": max(case.deviations),
            "families": families, **values}  # fmt: skip


def line(found: dict[str, Any]) -> str:
    before = [f"{found[k]:6.1%}" if k in found else "     -" for k in ("before_false_gain", "before_false_beats")]
    width = f"{found['before_width']:6.2f}" if "before_width" in found else "     -"
    wrong = " ".join(f"{found[key]:6.1%}" for key in RATES)
    return (
        f"{found['rows']:6} {found['seeds']:3} {found['deviation']:4.1f}  {wrong} {found['width']:6.2f} "
        f"{found['width_six']:6.2f} | {' '.join(before)} {width}  {found['kind']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and families, a minute")
    parser.add_argument("--families", type=int, help="simulated for each case (600, quick 200)")
    parser.add_argument("--before", type=int, help="of them, judged by the earlier bootstrap too (60, quick 20)")
    parser.add_argument("--rows", type=int, nargs="+", help="only cases with so many rows, such as 300 1000")
    parser.add_argument("--kind", default="", help="only such cases: equal, unequal or contexts")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    families = args.families or (200 if args.quick else 600)
    before = args.before if args.before is not None else (20 if args.quick else 60)
    began = time.perf_counter()
    print(
        "wrong: one interval at 95% (single; wild: of the method whose seeds spread most), any of the headline's three,"
    )
    print("any of the page's; false: a gain shown over fine-tuning, a student shown to beat its teacher; mean width in")
    print("points, at the page's level and corrected for six, as before (six)")
    print("  rows  n   sd  single   wild headln   page   gain  beats  width    six | before: gain, beats, width")
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = [
            pool.submit(measure, case, families, before, RESAMPLES)
            for case in cases(args.quick)
            if (not args.rows or case.rows in args.rows) and case.kind.startswith(args.kind)
        ]
        found = []
        for job in jobs:
            found.append(job.result())
            print(line(found[-1]), flush=True)
    several = [f for f in found if f["seeds"] > 1]
    about = {
        "benchmark": "coverage",
        "quick": args.quick,
        "worst_equal": {k: max((f[k] for f in several if not f["kind"].startswith("unequal")), default=None)
                        for k in RATES},
        "worst_unequal": {k: max((f[k] for f in several if f["kind"].startswith("unequal")), default=None)
                          for k in RATES},
        "shown_with_one_seed": sum(f["false_gain"] + f["false_beats"] for f in found if f["seeds"] == 1),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {args.processes} processes",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "scipy")},
        "cases": found,
    }  # fmt: skip
    print(json.dumps(about))


if __name__ == "__main__":
    main()
