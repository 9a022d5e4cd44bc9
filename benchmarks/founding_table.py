"""Does weighted distillation lift the student above its teachers where KD, annealing and born-again do not?

    python benchmarks/founding_table.py [--quick] [--labels 100 300 600] [--sets 5] [--seeds 4]    # digits
    python benchmarks/founding_table.py --sets 1 --seeds 5 --job jobs/sst2_minilm.yaml data.source=SST2 \\
        teachers.*.model=MINILM student.model=MINILM                                               # any other job

For every setting (number of labels, transfer rows or none) there are several sets of teachers, and each set teaches
several students with every method, once without folds and once with (`folds: 4`). Every training is raykd's own
(`raykd.training.loop.train`), with one thread and without Ray. Several processes divide the trainings among themselves.

`weighted` is trained with every W below 1 (W = 1 is KD). W is searched without looking at test and without rewarding a
lucky training: for each set of teachers, the W with the best mean validation score over all *other* sets is taken (with
one set: over all other seeds). Where W changes no decision of a set, its students would equal those of KD bit for bit,
so KD's are taken.

Intervals are about other sets of teachers (each with all of its students, whose mean counts as one training) and other
test rows. The half width is the root of t(sets - 1)^2 S + t(rows - 1)^2 E. S is the variance of the sets' means, over
their number. It contains the interaction of sets and rows, so E is the variance over rows without this part. Each has
its own quantile, since five sets say little about how much sets differ. Simulated with normal effects (FOUNDING.md),
the share of misses is about the nominal one or below it, also far out in the tails. With one set, its students count
instead of sets. The intervals of a setting's gains hold all at once (Bonferroni over all of them).

Every finished training is a line in OUTPUT/trainings.jsonl, and is never run again: the script resumes, and prints the
table of what is there. Of a setting, only sets are used in which every training of the table is done. The last line is
one JSON object; tables and the figure are in OUTPUT, too.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raykd.common.environment import set_environment

set_environment()  # before transformers and datasets are imported

import torch  # noqa: E402

from founding.figure import draw  # noqa: E402
from founding.known import Known  # noqa: E402
from founding.table import answer, assemble, lines_of, summary  # noqa: E402
from founding.trainings import WS, digits, of_job, train_all  # noqa: E402

LINES = "trainings.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help="a job's YAML instead of the digits; key=value changes it")
    parser.add_argument("--labels", type=int, nargs="*", default=[300, 100, 600], help="of the digits, in this order")
    parser.add_argument("--transfer", choices=["no", "yes", "both"], default="both", help="of the digits")
    parser.add_argument("--sets", type=int, default=5, help="of three teachers each")
    parser.add_argument("--seeds", type=int, default=4, help="students of each set and row")
    parser.add_argument("--W", type=float, nargs="+", default=WS, help="values that are tried besides 1, which is KD")
    parser.add_argument("--hours", type=float, default=24.0, help="no training is started after that")
    parser.add_argument("--processes", type=int, default=1, help="that share the trainings")
    parser.add_argument("--output", type=Path, default=Path("runs/founding_table"))
    parser.add_argument("--quick", action="store_true", help="a smoke test: the figures mean nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets, seeds, output = (2, 2, given.output / "quick") if given.quick else (given.sets, given.seeds, given.output)
    if given.job:
        settings = [of_job(given.job, given.overrides)]
    else:
        choices = {"no": [False], "yes": [True], "both": [False, True]}["no" if given.quick else given.transfer]
        settings = [
            digits(n, transfer, given.quick) for n in given.labels[: 1 if given.quick else None] for transfer in choices
        ]
    settings = [replace(setting, ws=tuple(given.W)) for setting in settings]
    output, until = output.absolute(), time.time() + 3600 * given.hours
    if given.processes > 1:
        with ProcessPoolExecutor(given.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            common = (settings, sets, seeds, output)
            others = [
                pool.submit(train_all, *common, Known(output / LINES, until), process, given.processes)
                for process in range(given.processes)
            ]
            for other in others:
                other.result()
    known = Known(output / LINES, until)
    complete, missing = train_all(settings, sets, seeds, output, known)
    tables = [assemble(s, complete[s.name], seeds, known) for s in settings if complete[s.name]]
    results: dict[str, Any] = {}
    text: list[str] = []
    for table in tables:
        lines, results[table.setting] = lines_of(table)
        text += lines
    text = [*(summary(results) if results else ()), *text]
    print("\n".join(text))
    (output / "tables.md").write_text("\n".join(text))
    if tables:
        draw(tables, output / "founding.png")
    print(f"not run: {'; '.join(missing) or 'nothing'}")
    print(answer(results))
    print(json.dumps({"missing": missing, "answer": answer(results), "settings": results}))


if __name__ == "__main__":
    main()
