"""What a command that continues another's MLflow run notes there: the commands before it, and whether it tries more."""

import json
from collections.abc import Sequence

from raykd.common.versions import short_versions
from raykd.config.schema import Config
from raykd.config.search import DEFAULT_TRIALS
from raykd.tracking.experiment import Tracking, source_tags
from raykd.tracking.tags import Tag

_MOST_EARLIER = 20  # command lines


def continued_tags(tracking: Tracking, run_id: str, config: Config) -> dict[str, str]:
    """Tags of a run that this command continues: its own command line, and those before it, a line each.

    One that had once ended with scores on test and is to try or train more is counted as extended.
    """
    run = tracking.client.get_run(run_id)
    before, now = run.data.tags, search_size(config)
    lines = [*before.get(Tag.EARLIER, "").splitlines(), before.get("mlflow.source.name", "")]
    versions = [*before.get(Tag.VERSIONS, "").splitlines(), short_versions()]
    tags = source_tags() | {Tag.SIZE: json.dumps(now), Tag.VERSIONS: "\n".join(dict.fromkeys(versions))}
    tags[Tag.EARLIER] = "\n".join(filter(None, lines[-_MOST_EARLIER:]))
    scored = before.get(Tag.SCORED) or (before.get(Tag.SIZE) if run.info.status == "FINISHED" else None)
    if scored is None:
        return tags
    if _is_more(now, json.loads(scored)):
        return tags | {Tag.SCORED: json.dumps(now), Tag.EXTENDED: str(int(before.get(Tag.EXTENDED, 0)) + 1)}
    return tags | {Tag.SCORED: scored}


def scored_tag(config: Config) -> dict[str, str]:
    """The tag of a run that fails after its scores on test have been seen. Of others, the status FINISHED says so."""
    return {Tag.SCORED: json.dumps(search_size(config))}


def search_size(config: Config) -> list[float | None]:
    """A sweep's limits: a method's trials, seeds, hours, GPU-hours. None: without a limit."""
    search = config.search
    trials = search.trials or (None if search.algorithm == "grid" else DEFAULT_TRIALS)
    return [trials, search.seeds, search.hours, search.gpu_hours]


def _is_more(now: Sequence[float | None], before: Sequence[float | None]) -> bool:
    """Whether one of the limits of `search_size` is higher, or is no more."""
    return any(b is not None and (n is None or n > b) for n, b in zip(now, before, strict=False))
