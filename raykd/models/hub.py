"""Uploads a model's folder to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from raykd.common.errors import ConfigError, TrainingError
from raykd.config.schema import Config
from raykd.models.adapters import is_adapter, settings_of


def check_push(config: Config, uploads: bool = True) -> None:
    """Raise ConfigError if `student.push_to_hub` would fail: a bad name, and with `uploads` no hub or nobody logged in.

    uploads: whether this command uploads.
    """
    key, repository = "student.push_to_hub", config.student.push_to_hub
    if not repository:
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(key, repository, str(error).rstrip("."), "Name it like you/model") from None
    if uploads and constants.HF_HUB_OFFLINE:
        raise ConfigError(key, repository, "HF_HUB_OFFLINE is set", f"Unset it, or remove {key}")
    if uploads and get_token() is None:
        hint = f"Log in with `hf auth login`, set HF_TOKEN, or remove {key}"
        raise ConfigError(key, repository, "there is no token of the hub here", hint)


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a model's folder as it is, and return the page's address.

    repository: such as `you/reviews-student`. It is created if it does not exist.
    private: whether a repository that is created is private; otherwise it is public, unless its organisation's default
        is private.

    Raises TrainingError if the hub refuses or cannot be reached, or if an adapter would publish a path of this machine.
    The folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.errors import HTTPError as ConnectionFailed  # of the HTTP library that it uses

    base = settings_of(folder, "MODEL").get("base_model_name_or_path") if is_adapter(folder) else None
    if base and (Path(base).is_absolute() or Path(base).exists()):
        hint = "Push a merged student (lora.save: merged), or train it from a model of the hub"
        reason = f"its adapter names the local path {base}"
        raise TrainingError(f"{folder} was not uploaded to {repository}: {reason}. {hint}")
    try:
        api = HfApi(library_name="raykd")
        created: Any = api.create_repo(repository, private=True if private else None, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Student trained by raykd")
        return str(created)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        if status not in (401, 403):
            hint = "Try again later"
        raise TrainingError(_failed(folder, repository, str(error), hint)) from error
    except HFValidationError as error:
        raise TrainingError(_failed(folder, repository, str(error), "Name it like you/model")) from error
    except (ConnectionFailed, OSError) as error:  # OfflineModeIsEnabled is an OSError
        hint = "Run where the hub can be reached, without HF_HUB_OFFLINE"
        raise TrainingError(_failed(folder, repository, str(error) or type(error).__name__, hint)) from error


def _failed(folder: Path, repository: str, reason: str, hint: str) -> str:
    first = next((line.strip() for line in reason.splitlines() if line.strip()), reason)
    again = f"{hint}; then: raykd push {folder} {repository}"
    return f"{folder} was not uploaded to {repository}: {first.rstrip('.')}. {again}"
