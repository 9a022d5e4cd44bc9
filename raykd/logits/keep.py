"""What is kept of a teacher's logits of a decision."""

from dataclasses import dataclass
from typing import Literal

from raykd.config.schema import Config
from raykd.config.services import TopKConfig
from raykd.tasks.common import Task

Form = Literal["all", "scores", "hidden", "top_k"]


@dataclass(frozen=True)
class Keep:
    """form: "all": every logit, in fp16.
        "hidden": the last hidden state, from which the teacher's head computes every logit, and the scores.
        "top_k": the k largest logits with the logsumexp of all, and the scores.
        "scores": the first choice, the log-probability of the true class and the entropy; what an evaluation needs.
    k: of "top_k".

    `raykd.distillation.packed` has the numbers.
    """

    form: Form = "all"
    k: int = 0

    @classmethod
    def of(cls, config: Config, task: Task) -> "Keep":
        """What `logits.keep` says."""
        keep = config.logits.keep
        if isinstance(keep, TopKConfig):
            return cls("top_k", keep.top_k)
        return cls("hidden" if task.predicts_tokens else "all") if keep == "auto" else cls(keep)

    @property
    def packed(self) -> bool:
        """Whether what is kept is not the logits themselves."""
        return self.form != "all"

    def numbers(self, classes: int, states: int) -> int:
        """How many fp16 numbers are kept of a decision. states: d, of the last hidden state."""
        return {"all": classes, "scores": 6, "hidden": 7 + states, "top_k": 8 + 3 * self.k}[self.form]

    def in_key(self, dtype: str) -> str:
        """A teacher's compute dtype as the key of its logits names it, with what is kept if that is not all."""
        if dtype == "bfloat16":  # earlier versions computed heads in it, too, so theirs is another name
            dtype = "bfloat16, heads in float32"
        said = {"all": "", "hidden": ", last hidden states", "top_k": f", largest {self.k} logits", "scores": ""}
        return dtype + said[self.form]


ALL, SCORES, HIDDEN = Keep(), Keep("scores"), Keep("hidden")
