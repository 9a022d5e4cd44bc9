"""The leaderboard as CSV, with numbers that are not rounded."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from raykd.reports.analysis import LEVEL, Analysis, LeaderboardRow, leaderboard, name_of
from raykd.reports.arms import searched_trainings, setting_of, trial_counts

_TEST = "final_test/"


def leaderboard_csv(analyses: Sequence[Analysis]) -> str:
    """CSV, a line for each arm of each experiment; empty where a value is missing.

    validation, test, test_sd: means over seeds and the standard deviation over seeds, in the units of the metrics that
        `validation_metric` (by which models are chosen) and `metric` (of test and of the gains) name.
    gain, gain_low, gain_high: over fine-tuning, in the unit of `metric`, above 0 if better. The interval has the level
        `gain_level`, as in the report; gain_95_low and gain_95_high are this gain's own 95% interval.
    trials_started, trials_finished: counts. seeds: separated by spaces.
    seconds, gpu_seconds: of one training, means over seeds.
    test_...: means over seeds of everything else that was measured on test.
    """
    lines = [_line(analysis, row) for analysis in analyses for row in leaderboard(analysis)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def _line(analysis: Analysis, row: LeaderboardRow) -> dict[str, Any]:
    experiment, arm, base = analysis.experiment, row.arm, analysis.finetune
    finished, started = trial_counts(experiment, arm)
    alone = None
    if row.gain and base and analysis.means and not math.isnan(row.gain.low):
        alone = analysis.improvement(analysis.means.gain(name_of(arm), name_of(base), LEVEL))
    others = sorted({name for run in arm.runs for name in run.metrics if name.startswith(_TEST)})
    return {
        "experiment": experiment.name,
        "run_id": experiment.id,
        "name": arm.name,
        "kind": arm.kind,
        "setting": setting_of(arm.runs[0], searched_trainings(experiment), str),
        "best": arm is analysis.best,
        "trials_started": started if started else None,
        "trials_finished": finished if started else None,
        "seeds": " ".join(run.params.get("seed", "") for run in arm.runs) if arm.trained else None,
        "metric": experiment.primary_metric,
        "validation_metric": experiment.metric,
        "validation": row.validation,
        "test": row.test,
        "test_sd": row.sd,
        "gain": row.gain.value if row.gain else None,
        "gain_low": row.gain.low if row.gain else None,
        "gain_high": row.gain.high if row.gain else None,
        "gain_level": analysis.level if alone else None,
        "gain_95_low": alone.low if alone else None,
        "gain_95_high": alone.high if alone else None,
        "seconds": row.seconds,
        "gpu_seconds": row.gpu_seconds,
        **{
            f"test_{name.removeprefix(_TEST)}": arm.mean(name)
            for name in others
            if name != _TEST + experiment.primary_metric
        },
    }


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
