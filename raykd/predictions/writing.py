"""`raykd predict` with a language model, of rows that are prompts alone: the texts that it writes."""

import logging
from typing import Any

import numpy as np
from datasets import Dataset

from raykd.common.errors import ConfigError
from raykd.common.units import rows_that
from raykd.config.data import GenerateConfig
from raykd.models.decoding import generate
from raykd.models.loading import default_dtype
from raykd.tasks import Task
from raykd.tasks.common import RowError

log = logging.getLogger(__name__)


def are_prompts(rows: Dataset, task: Task) -> bool:
    """Whether the rows wait for an answer: prompts without completions, conversations that the assistant does not end.

    Warns if only some conversations do, because then no text is written.

    rows: under the task's names of the columns.
    """
    if not task.predicts_tokens:
        return False
    if "messages" in rows.column_names:
        waiting = [not row or row[-1]["role"] != "assistant" for row in rows["messages"]]
        if any(waiting) and not all(waiting):
            text = "data.test: %s not end with the assistant, as others do, so no text is written. Predict them apart"
            log.warning(text, rows_that(np.flatnonzero(waiting), "does", "do"))
        return all(waiting)
    return "prompt" in rows.column_names and "completion" not in rows.column_names


def written(rows: Dataset, start: int, task: Task, model: Any, processor: Any, device: Any) -> list[dict[str, str]]:
    """What the model writes greedily after each row, in at most `task.generate.max_new_tokens` tokens.

    Without that setting there are 64, or as many as the model's positions leave.

    start: the first row's number in the data, for errors.

    Raises ConfigError for a row without a token, for one that leaves no room in the model's positions, and for
    messages that the chat template does not take.
    """
    given = task.settings.generate
    most = (given or GenerateConfig.model_validate({})).max_new_tokens
    try:
        prompts = task.prompts(rows[:], processor, follow=True)
    except RowError as error:
        raise ConfigError("data.test", f"row {start + error.position}", error.reason, error.hint) from None
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    if positions and not given:
        most = max(1, min(most, positions - max(map(len, prompts))))
    for row, prompt in enumerate(prompts, start):
        if not prompt:
            reason, hint = "its prompt has no token, so there is nothing to write after", "Correct or drop the row"
            raise ConfigError("data.test", f"row {row}", reason, hint)
        if 0 < positions < len(prompt) + most:
            reason = f"with the {len(prompt)} tokens of row {row} it is more than the model's {positions} positions"
            raise ConfigError("task.generate.max_new_tokens", most, reason, "Lower it, or shorten the row")
    return [{"prediction": text} for text in generate(model, processor, prompts, most, device, default_dtype(device))]
