"""transformers' config of a model, with the user's values and the task's classes."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.config.schema import ModelConfig
from raykd.models.problems import not_a_model
from raykd.tasks.common import Task

if TYPE_CHECKING:
    import transformers
else:
    transformers = Late("transformers")


# Values of transformers' problem_type with which a model's logits are not those of a softmax.
OTHER_PROBLEMS = ("multi_label_classification", "regression")
# In these models position numbers start after the padding token's, so the table has that many more rows.
POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke"}
POSITIONS_AFTER_PADDING |= {"markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"}
POSITIONS_AFTER_PADDING |= {"xmod"}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, with a timm model's classes and architecture named as transformers names them."""
    saved = json.loads((folder / "config.json").read_text())
    if "num_classes" not in saved or not {"architecture", "label_names"} & saved.keys():
        return saved
    classes = saved["num_classes"]  # 0: the model has no head
    names = saved.get("label_names") or []
    named = {"id2label": {str(i): name for i, name in enumerate(names)}} if len(names) == classes else {}
    wrapped = {"architectures": ["TimmWrapperForImageClassification"] if classes else [], "num_labels": classes}
    return wrapped | named | saved


def load_config(spec: ModelConfig, folder: Path | None, task: Task, key: str) -> Any:
    """Load a model's config. Raises ConfigError if transformers cannot make one."""
    labels = {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {n: i for i, n in enumerate(task.label_names)},
        "num_labels": len(task.label_names),  # a timm model's config looks at nothing else
    }
    values = dict(spec.config) | (labels if task.label_names else {})
    if task.predicts_values:
        values |= {"num_labels": 1}
    kind = spec.config.get("model_type")
    if folder is None and kind not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), transformers.CONFIG_MAPPING, 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else "Name one as transformers does, such as bert"
        raise ConfigError(f"{key}.config.model_type", kind, "transformers knows no such kind of model", hint)
    try:
        if folder is None:
            config = transformers.AutoConfig.for_model(**values)
        else:
            values.pop("model_type", None)
            trusted = spec.trust_remote_code
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted, **values)
    except Exception as error:  # transformers raises exceptions of any type
        if "custom code" in str(error) and not spec.trust_remote_code:
            hint = "Set it to true if you trust its author, or use another model"
            name = f"{key}.trust_remote_code"
            raise ConfigError(name, False, f"{spec.pretrained} comes with code of its own", hint) from None
        raise not_a_model(spec, key, error) from None
    if getattr(config, "label_names", None) and task.label_names:
        config.label_names = list(task.label_names)  # a timm model would be saved with its old ones
    # By it transformers' pipelines choose between a softmax, a sigmoid and neither.
    if task.problem_type or getattr(config, "problem_type", None) in OTHER_PROBLEMS:
        config.problem_type = task.problem_type
    return config
