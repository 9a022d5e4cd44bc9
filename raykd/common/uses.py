"""Notes of which job uses what in the store, so that people can decide what to remove.

One file for each job, `store/uses/JOB.jsonl`, to which lines are appended. A job has one command at a time, and
a line that a killed command left unfinished is skipped.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)
USES = "uses"


@dataclass(frozen=True)
class Use:
    """by: the job.
    at: when it last used the item, in seconds since the epoch.
    name: what the job calls it, such as "vit-a".
    """

    by: str
    at: float
    name: str


def note_uses(store: Path, by: str, items: Mapping[str, str]) -> None:
    """Record that a job uses these items now. Only warns if the store cannot be written.

    store: the folder `output/store`.
    by: the job's name.
    items: what the job calls each item, by the item's folder relative to the store ("trainings/0f94...").
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [json.dumps({"at": now, "item": item, "name": name}) + "\n" for item, name in items.items()]
    file = store / USES / f"{by}.jsonl"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as notes:
            notes.write("\n" + "".join(lines))  # the last line may be unfinished
    except OSError as error:
        log.warning("%s: cannot note what %s uses: %s", file, by, error)


def read_uses(store: Path) -> dict[str, list[Use]]:
    """The jobs that use each item, the latest first."""
    uses: dict[str, dict[str, Use]] = {}
    for file in sorted((store / USES).glob("*.jsonl")):
        for line in file.read_text(errors="replace").splitlines():
            try:
                note = json.loads(line)
                use = Use(file.stem, datetime.fromisoformat(note["at"]).timestamp(), str(note["name"]))
                uses.setdefault(note["item"], {})[use.by] = use  # later lines are later uses
            except (ValueError, KeyError, TypeError):
                continue
    return {item: sorted(by.values(), key=lambda use: -use.at) for item, by in uses.items()}
