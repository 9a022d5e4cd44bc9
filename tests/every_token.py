"""A task of the tests alone, whose rows have as many decisions as they have tokens: is this word a good one?"""

from typing import Any

import numpy as np
import torch

from raykd.tasks import NO_LABEL, Batch, Evaluation, Task
from raykd.tasks.padding import pad_tokens


class EveryToken(Task):
    primary_metric = "accuracy"
    metric_names = ("accuracy",)
    auto_model = "AutoModelForTokenClassification"
    processor = "tokenizer"
    columns = ("text",)
    label_column = "label"
    model_inputs = ("input_ids",)
    aligned_columns = ("input_ids",)

    def preprocessing(self):
        return {"task": "every-token"}

    def check_rows(self, rows, split, labelled):
        """Every row can be used."""

    def encode(self, rows, processor, labelled):
        ids = processor(rows["text"])["input_ids"]
        labels = rows["label"] if labelled else [[NO_LABEL] * (len(row) - 2) for row in ids]
        return {
            "input_ids": ids,
            "labels": [[NO_LABEL, *row, NO_LABEL] for row in labels],  # of [CLS], the words and [SEP]
            "length": [len(row) for row in ids],
            "window": [0] * len(ids),
            "source": list(range(len(ids))),
        }

    def shapes(self, rows):
        return np.array([[length, len(self.label_names)] for length in rows["length"]])

    def collate(self, rows, processor):
        inputs, _ = pad_tokens(rows, self.model_inputs, processor)
        exists = inputs["attention_mask"].bool()
        labels = [[*row] + [NO_LABEL] * (exists.shape[1] - len(row)) for row in rows["labels"]]
        return Batch(inputs, torch.tensor(labels), exists[..., None].expand(-1, -1, len(self.label_names)))

    def decisions(self, outputs, batch):
        return outputs.logits

    def summarize(self, logits, rows):
        """Each row's accuracy."""
        both = zip(logits, rows["labels"], strict=True)
        return [float((row.argmax(1)[1:-1] == labels[1:-1]).mean()) for row, labels in both]

    def evaluate(self, summaries, encoded, raw, calibration=None):
        accuracy = float(np.mean(summaries))
        return Evaluation({"accuracy": accuracy}, np.array(summaries), [{"score": score} for score in summaries])


class Name(str):
    """The task's name. Unpickling it, as Ray's and the tests' worker processes do, enters the task in `TASKS`."""

    def __reduce__(self) -> Any:
        return enter, (str(self), EveryToken)


def enter(name: str, task: type[Task]) -> Name:
    import raykd.tasks  # TASKS of this process, also where this function was pickled by value

    raykd.tasks.TASKS[name] = task
    return Name(name)


EVERY_TOKEN = enter("every-token", EveryToken)
