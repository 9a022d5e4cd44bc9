"""Checkpoints that no training needs any more: commands remove them when they end.

A training deletes its own when it has its result. This is for those whose process was killed in between, and for
trainings that were stopped and then given up.
"""

import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from raykd.common.output_files import LOCK, RESULT, STORE, TRAININGS
from raykd.common.units import counted, shown_size
from raykd.common.uses import read_uses
from raykd.disk.items import uses_of_journals

ABANDONED_DAYS = 7.0
_CHECKPOINTS = ("checkpoint.pt", "best.safetensors")  # in the folder of each generation


def remove_leftovers(output: Path, job: str, console: Console) -> int:
    """Remove the checkpoints of finished trainings, and of those that the job has abandoned. A result and models stay.

    A training without a result is abandoned if only this job has used it, none of its sweeps has it, and the job has
    ended a command without it a week after it was stopped. Other jobs' trainings stay, because they can be resumed.

    job: whose command has just ended without an error.

    Returns the bytes that were freed, which it also prints.
    """
    store = output / STORE
    uses, in_sweeps = read_uses(store), uses_of_journals(output)
    trainings, freed = 0, 0
    found = {path.parent.parent for name in _CHECKPOINTS for path in store.glob(f"{TRAININGS}/*/generation-*/{name}")}
    for folder in sorted(found):
        item = f"{TRAININGS}/{folder.name}"
        of = uses.get(item, [])
        own = bool(of) and item not in in_sweeps and all(use.by == job for use in of)
        try:
            with FileLock(folder / LOCK, timeout=0):  # otherwise a process is training it
                finished = (folder / RESULT).is_file()
                files = [file for name in _CHECKPOINTS for file in folder.glob(f"generation-*/{name}")]
                newest = max([*(file.stat().st_mtime for file in files), *(use.at for use in of)], default=0.0)
                if not finished and not (own and newest < time.time() - ABANDONED_DAYS * 86400):
                    continue
                trainings, freed = trainings + 1, freed + sum(file.stat().st_size for file in files)
                for file in files:
                    file.unlink()
                shutil.rmtree(folder / "generations", ignore_errors=True)  # logits of born-again students
        except Timeout:
            continue
    if trainings:
        removed = f"removed the checkpoints of {counted(trainings, 'training')}, finished or given up"
        console.print(f"{removed}: {shown_size(freed)}", highlight=False, soft_wrap=True)
    return freed
