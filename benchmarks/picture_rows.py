"""What batches of pictures cost the host of a GPU: their bytes alone, compared with scaling them there, too.

    python benchmarks/picture_rows.py [--quick]

Random pictures of 224 x 224 pixels in three channels, encoded for a vision transformer; one thread. A teacher's batch
(128 pictures) and a student's step (32) are read from Arrow and joined, with and without their scaling to the model's
range, in turns. raykd scales them on the model's device, so on a GPU its host only reads and joins them.

The last line is one JSON object. Of batch and step, bytes_of_scaled: the ratio of the times, the median over the rounds
with its quartiles.
"""

import argparse
import json
import platform
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from transformers import ViTImageProcessorPil

from raykd.common.versions import processor_name
from raykd.config.schema import TaskConfig
from raykd.models.inputs import InputRows
from raykd.tasks import make_task

SIZE, PICTURES = 224, 512
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="ten rounds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    task = make_task(TaskConfig(type="image-classification", labels=["a", "b"]), ["a", "b"])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pictures = rng.integers(0, 256, (PICTURES, 3, SIZE, SIZE), dtype=np.uint8)
        columns = {"pixels": [p.tobytes() for p in pictures], "shape": [[3, SIZE, SIZE]] * PICTURES}
        columns |= {"labels": [[0]] * PICTURES, "length": [1] * PICTURES}
        Dataset.from_dict(columns).save_to_disk(folder)
        rows = InputRows(load_from_disk(folder), task)
        said: dict[str, object] = {"machine": platform.machine(), "cpu": processor_name()}
        for name, count in (("batch", 128), ("step", 32)):
            times = []
            for number in range(10 if given.quick else given.rounds):
                positions, pair = rng.permutation(PICTURES)[:count], [0.0, 0.0]
                for scaled in (0, 1)[:: 1 if number % 2 else -1]:
                    since = time.perf_counter()
                    batch = task.collate(rows[positions], processor)
                    if scaled:
                        batch.to(CPU)
                    pair[scaled] = time.perf_counter() - since
                times.append(pair)
            only_bytes, with_scaling = np.array(times).T
            quartiles = np.quantile(only_bytes / with_scaling, [0.25, 0.5, 0.75])
            ms = np.median(only_bytes) * 1e3, np.median(with_scaling) * 1e3
            print(f"{name}: {ms[0]:.2f} ms, with the scaling {ms[1]:.2f} ms; {quartiles[1]:.3f} of it")
            said[name] = {"bytes_of_scaled": [round(float(q), 4) for q in quartiles], "ms": [round(m, 3) for m in ms]}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
