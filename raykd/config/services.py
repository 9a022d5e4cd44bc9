"""The schema's sections about logits, MLflow and Ray. Importable without torch or Ray."""

import os
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raykd.common.environment import home
from raykd.config.messages import invalid
from raykd.config.section import Place, Section


class TopKConfig(Section):
    """The K largest logits of each decision, and the logsumexp of all."""

    top_k: int = Field(64, ge=1, description="how many; 6 bytes each")


class LogitsConfig(Section):
    """How teachers' logits reach the student, and where they are stored."""

    mode: Literal["stored", "live"] = Field(
        "stored",
        description="stored: computed once per row and stored; live: computed by the teachers for every batch",
    )
    keep: Literal["auto", "all", "hidden"] | TopKConfig = Field(
        "auto",
        description="what is kept of each decision. all: every logit; hidden: the last hidden state, from which the "
        "teacher's head gives every logit; {top_k: K}: the K largest, for T = 1 and pool: probabilities, which are "
        "then the defaults. auto, the default: hidden for text-generation, all for other tasks",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="the teachers' compute dtype")
    block_rows: int | Literal["auto"] = Field(
        "auto",
        description="most rows in a block, the unit that is computed and stored at once; more where that made too many "
        "files, fewer where a language model's rows have more than 32,768 tokens together; auto: 1024, on a GPU up to "
        "8192 where they are short",
    )
    batch_tokens: int | Literal["auto"] = Field(
        "auto",
        description="most tokens in a teacher's batch: number of rows times the longest row; auto: 1024 on a CPU, "
        "16384 on a share of a GPU, and on a GPU of its own as many as are fastest, which is measured before the first "
        "block of stored logits",
    )
    compile: Literal["auto"] | bool = Field(
        False,
        description="run teachers through torch.compile: slow to start, then perhaps faster; auto: where a replica has "
        "half an hour of work left and its own blocks show that they take less time compiled",
    )
    in_flight: int = Field(4, ge=1, description="live: most steps that a student worker requests ahead")
    timeout_s: float = Field(
        600, gt=0, description="longest time for a teacher to compute a block or an answer before it is replaced"
    )
    storage: Place | None = Field(
        None, description="where blocks are stored: a path, s3://... or gs://...; default: in output/store"
    )
    cache: Place | None = Field(
        None,
        description="folder on each node that caches blocks; default: none if storage is a path, else a temporary one",
    )
    cache_gb: float = Field(100, gt=0, description="largest size of the cache; least recently used blocks are evicted")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"mode": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _at_least_one(self) -> "LogitsConfig":
        reasons = {"block_rows": "a block has at least one row", "batch_tokens": "a batch has at least one token"}
        for name, reason in reasons.items():
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise invalid(value, reason, "Give 1 or more, or auto", name)
        return self

    @field_validator("storage", "cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else os.path.abspath(os.path.join(home(), value))


class TrackingConfig(Section):
    """MLflow, and what is measured for the report."""

    uri: str | None = Field(None, description="default: MLFLOW_TRACKING_URI, else a sqlite file under output")
    experiment: str | None = Field(None, description="MLflow's experiment; default: the job's name")
    serving_cost: bool = Field(
        True,
        description="measure size, latency and throughput of teachers, ensemble and student at the end: seconds, once",
    )
    also: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="other trackers that get the same parameters and metrics: tensorboard, wandb"
    )

    @field_validator("also", mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(
        None,
        description="a running cluster (auto: one that was started on this machine); default: RAY_ADDRESS, else a "
        "local one is started for the command",
    )
    max_retries: int = Field(
        3,
        ge=0,
        description="restarts of a process that keeps dying, or whose GPU keeps failing, without an evaluation in "
        "between, before its run fails",
    )
    timeout_s: float = Field(
        1800,
        gt=0,
        description="longest wait for resources that the cluster has but that are in use; also for another command "
        "that trains the same model but makes no progress",
    )
    collective_timeout_s: int = Field(
        600, ge=1, description="longest time that one worker of a training waits for another before it fails"
    )
    wait_s: float = Field(
        0, ge=0, description="longest wait for an autoscaling cluster to grow to the requested size; 0: do not wait"
    )

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that is named; None: a local one is started."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        return None if address == "local" else address
