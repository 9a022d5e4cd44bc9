"""From a config's model to a loaded one: processor, weights, identity. Safetensors only."""

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from raykd.common.errors import ConfigError, HubError
from raykd.common.hashing import file_digest, fingerprint
from raykd.config.schema import ModelConfig
from raykd.models.heads import compute_heads_in_fp32
from raykd.tasks.common import Task
from raykd.tasks.pictures import in_two_steps

_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]  # never a pickle
OTHER_PROBLEMS = ("multi_label_classification", "regression")  # a config's problem_type that is no task's here
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


# Their first position has the number of the padding token plus one: the table has so many rows more.
POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke"}
POSITIONS_AFTER_PADDING |= {"markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"}
POSITIONS_AFTER_PADDING |= {"xmod"}


def model_folder(spec: ModelConfig, key: str) -> Path | None:
    """The local folder of a pretrained model (fetched from the hub if need be); None: from scratch."""
    if spec.pretrained is None:
        return None
    folder = Path(spec.pretrained)
    if not folder.is_dir():
        if folder.is_absolute() or spec.pretrained.startswith("."):
            raise ConfigError(key, spec.pretrained, "there is no such folder", "Give a local folder or a hub id")
        patterns = [*_FILES, "*.py"] if spec.trust_remote_code else _FILES
        folder = _fetch(spec.pretrained, spec.revision, patterns, key)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        raise ConfigError(
            key,
            spec.pretrained,
            f"it holds an adapter (adapter_config.json) for {base or 'another model'}, not a whole model",
            "Merge it into that model (peft's merge_and_unload) and save the result with save_pretrained",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for pattern in _PICKLED for p in folder.glob(pattern)]
        if pickled:
            raise ConfigError(
                key,
                spec.pretrained,
                f"its weights are pickled ({pickled[0]}), which can run code",
                "Save it again with save_pretrained, which writes safetensors",
            )
        raise ConfigError(key, spec.pretrained, "it holds no *.safetensors", "Give a folder that save_pretrained wrote")
    if not (folder / "config.json").is_file():
        hint = "Give a folder that the whole model's save_pretrained wrote"
        raise ConfigError(key, spec.pretrained, "it holds no config.json", hint)
    return folder


def _fetch(name: str, revision: str | None, patterns: list[str], key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise _out_of_reach(key, name) from None
    except (HFValidationError, HfHubHTTPError) as error:
        raise ConfigError(
            key,
            name,
            f"the hub does not give it ({type(error).__name__})",
            "Check the id and its access rights, or give a local folder",
        ) from None
    except OSError:
        raise _out_of_reach(key, name) from None


def _out_of_reach(key: str, name: str) -> HubError:
    hint = "Give a local folder, or run where the hub can be reached"
    return HubError(key, name, "it is no local folder and the hub cannot be reached", hint)


def load_processor(spec: ModelConfig, task: Task, key: str) -> Any:
    """The tokenizer or image processor that goes with a model."""
    source = spec.tokenizer or spec.pretrained
    pictures = task.processor == "image_processor"
    options: dict[str, Any] = {"backend": "pil"} if pictures else {}
    if source is None:
        if pictures:
            return _plain_image_processor(spec.config)
        hint = "Give a folder or hub id that holds a tokenizer"
        raise ConfigError(f"{key}.tokenizer", None, "a text model from scratch needs one", hint)
    # By name: to look at the other one would import it, which takes seconds.
    loader = getattr(transformers, "AutoImageProcessor" if pictures else "AutoTokenizer")
    revision = spec.revision if source == spec.pretrained else None
    try:
        found = loader.from_pretrained(source, revision=revision, trust_remote_code=spec.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        if not Path(source).is_dir() and "offline" in f"{error} {error.__cause__}".lower():
            raise _out_of_reach(f"{key}.tokenizer", source) from None
        raise ConfigError(
            f"{key}.tokenizer",
            source,
            f"no {task.processor} can be loaded from it ({first_line(error)})",
            "Give the folder or hub id that holds it",
        ) from None
    if pictures:
        _check_image_processor(found, source, key)
    if not pictures and len(found) <= len(found.all_special_tokens):  # made of nothing
        hint = "Give the folder or hub id that holds it"
        raise ConfigError(f"{key}.tokenizer", source, "no tokenizer can be loaded from it (it knows no word)", hint)
    if pictures:
        return found
    if found.pad_token_id is None:
        if found.eos_token is None:
            hint = "Save it with a pad_token, or give another tokenizer"
            raise ConfigError(f"{key}.tokenizer", source, "it has no padding token, which batches need", hint)
        found.pad_token = found.eos_token  # as users of decoders do; attention never reaches it
    if "token_type_ids" in found.model_input_names and not _takes_token_types(spec, task, key):
        found.model_input_names = [n for n in found.model_input_names if n != "token_type_ids"]
        found.init_kwargs["model_input_names"] = found.model_input_names  # what save_pretrained writes
    _set_padding_side(found, spec, key)
    return found


def _takes_token_types(spec: ModelConfig, task: Task, key: str) -> bool:
    """Whether a model can be fed token types. With a single type there is nothing to tell apart."""
    config = load_config(spec, task, key)
    types = getattr(config, "type_vocab_size", None)
    if types is not None or spec.trust_remote_code:
        return types != 1
    # Imports the model's module, which is why the config is looked at first.
    model = getattr(transformers, task.auto_model)._model_mapping.get(type(config), None)
    return model is None or "token_type_ids" in inspect.signature(model.forward).parameters


def _set_padding_side(tokenizer: Any, spec: ModelConfig, key: str) -> None:
    """Set the side on which this model's rows can be padded without changing their logits.

    XLNet classifies by its last position, so it needs the left, whatever its tokenizer says. Models that number
    positions from the batch's first column (BERT, GPT-2) need the right. The other kinds that transformers has allow
    both. A model that brings its own code is padded as its tokenizer says.
    """
    if spec.trust_remote_code:
        return
    if model_type(spec, key) == "xlnet":
        tokenizer.init_kwargs["padding_side"] = "left"  # what it is saved with
        tokenizer.padding_side = "left"
    else:
        tokenizer.padding_side = "right"


def model_type(spec: ModelConfig, key: str) -> str | None:
    """The kind of model, as transformers names it, without loading its config."""
    folder = model_folder(spec, key)
    return (spec.config if folder is None else json.loads((folder / "config.json").read_text())).get("model_type")


def _check_image_processor(processor: Any, source: str, key: str) -> None:
    """It gives pictures as tensors (channels, height, width), and nothing else that its model needs."""
    try:
        in_two_steps(processor)
    except Exception as error:  # a processor raises whatever it meets
        reason = f"its image processor, {type(processor).__name__}, cannot be used ({first_line(error)})"
        hint = "Use a model whose image processor gives pixel_values of one size"
        raise ConfigError(f"{key}.tokenizer", source, reason, hint) from None


def _plain_image_processor(config: dict[str, Any]) -> Any:
    """For an image model from scratch: its size, values scaled to -1..1."""
    size, channels = config.get("image_size", 224), config.get("num_channels", 3)
    return transformers.ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


def load_config(spec: ModelConfig, task: Task, key: str) -> Any:
    """transformers' config of a model, with the user's values and the task's labels."""
    labels = {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {n: i for i, n in enumerate(task.label_names)},
    }
    values = dict(spec.config) | (labels if task.label_names else {})
    folder = model_folder(spec, key)
    kind = spec.config.get("model_type")
    if folder is None and kind not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), transformers.CONFIG_MAPPING, 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else "Name one as transformers does, such as bert"
        raise ConfigError(f"{key}.config.model_type", kind, "transformers knows no such kind of model", hint)
    try:
        if folder is None:
            found = transformers.AutoConfig.for_model(**values)
        else:
            values.pop("model_type", None)
            trusted = spec.trust_remote_code
            found = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted, **values)
    except Exception as error:  # transformers raises whatever it meets
        if "custom code" in str(error) and not spec.trust_remote_code:
            hint = "Set it to true if you trust its author, or use another model"
            name = f"{key}.trust_remote_code"
            raise ConfigError(name, False, f"{spec.pretrained} brings code of its own to run", hint) from None
        raise _no_model(spec, key, error) from None
    if getattr(found, "problem_type", None) in OTHER_PROBLEMS:  # transformers' pipelines would apply a sigmoid
        found.problem_type = None
    return found


def weight_shapes(
    spec: ModelConfig, task: Task, key: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes of the weights that the model's config makes, and of those in its folder, by the same names."""
    config = load_config(spec, task, key)
    try:
        with torch.device("meta"):  # no memory is taken
            model = getattr(transformers, task.auto_model).from_config(config)
    except Exception as error:
        raise _no_model(spec, key, error) from None
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    given: dict[str, tuple[int, ...]] = {}
    folder, base = model_folder(spec, key), f"{model.base_model_prefix}."
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            with safe_open(file, "pt") as weights:
                # A checkpoint of the body alone lacks its prefix, as one of the whole may have it.
                given |= {
                    name if name in expected else base + name: tuple(weights.get_slice(name).get_shape())
                    for name in weights.keys()  # noqa: SIM118 (no mapping)
                }
        except SafetensorError as error:
            reason = f"{file.name} cannot be read ({first_line(error)})"
            raise ConfigError(key, spec.pretrained, reason, "Copy or save it again") from None
    return expected, given


def _no_model(spec: ModelConfig, key: str, error: Exception) -> ConfigError:
    where = f"{key}.config" if spec.config else key
    shown = spec.config or spec.pretrained
    return ConfigError(where, shown, f"no model can be made of it ({first_line(error)})", "Mend the value it names")


def first_line(error: Exception) -> str:
    """Of transformers' long messages what matters: errors of a field have it in the second line."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return (
        first[:160].rstrip(". ")
        if isinstance(error, (ValueError, OSError))
        else f"{type(error).__name__}: {first[:160]}"
    )


def load_model(spec: ModelConfig, task: Task, seed: int, key: str, processor: Any = None) -> torch.nn.Module:
    """The model in fp32 on the CPU. What its weights do not cover (a new head) is drawn from `seed`.

    processor: what feeds it. The model is given a tokenizer's padding token: decoders find a row's last token by it.
    """
    return load_reported(spec, task, seed, key, processor)[0]


def load_reported(
    spec: ModelConfig, task: Task, seed: int, key: str, processor: Any = None
) -> tuple[torch.nn.Module, set[str], set[str]]:
    """`load_model`, with the names of weights that its files lack and of those in its files that it does not use."""
    config = load_config(spec, task, key)
    auto = getattr(transformers, task.auto_model)
    # torch's first choice for attention in bf16 on an H100 or B200; it plans anew, for tens of milliseconds and more,
    # for each shape of a batch that it has not seen (pytorch/pytorch#155958), and nearly every batch here has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(seed)
    folder = model_folder(spec, key)
    missing, unused = set[str](), set[str]()
    if folder is None:
        model = auto.from_config(config)
    else:
        with _quiet_loading():
            model, found = auto.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
            )
        missing, unused = set(found["missing_keys"]), set(found["unexpected_keys"])
    _set_pad_token(model.config, processor)
    compute_heads_in_fp32(model)
    return model, missing, unused


def load_whole(spec: ModelConfig, task: Task, key: str, processor: Any) -> torch.nn.Module:
    """The model, every weight of it from its files: what serves as it is has no head to draw. Raises ConfigError."""
    model, missing, _ = load_reported(spec, task, 0, key, processor)
    if lacking := lacking_weights(model, missing):
        reason = f"its files lack {len(lacking)} weights ({lacking[0]})"
        raise ConfigError(key, spec.pretrained, reason, "Save the whole model there, or have it trained anew")
    return model


def lacking_weights(model: torch.nn.Module, missing: set[str]) -> list[str]:
    """Those of the missing names that are learned. Tables of indices are made from the config."""
    buffers = dict(model.named_buffers())
    return sorted(n for n in missing if n not in buffers or buffers[n].is_floating_point())


def _set_pad_token(config: Any, processor: Any) -> None:
    """After the weights are made: an embedding that is known to be padding starts at 0 and is never trained."""
    padding = getattr(processor, "pad_token_id", None)
    if padding is None or config.model_type in POSITIONS_AFTER_PADDING:
        return  # the table of positions was made for the token that the config names, and would be read anew
    for part in (config, config.get_text_config()):
        part.pad_token_id = padding


class _quiet_loading:
    """transformers tells at length of new heads and dropped layers; both are meant here."""

    def __enter__(self) -> None:
        self.level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self.level)


def is_fine_tuned(spec: ModelConfig, task: Task, key: str) -> bool:
    """Whether a checkpoint brings the task's head, as its config says."""
    folder = model_folder(spec, key)
    if folder is None:
        return False
    suffix = task.auto_model.removeprefix("AutoModel")
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    return any(name.endswith(suffix) for name in architectures)


def model_digest(spec: ModelConfig, key: str) -> str:
    """Identity of what a model starts from: its weights, config and code by content, or its config alone."""
    folder = model_folder(spec, key)
    if folder is None:
        return fingerprint(spec.config)
    if spec.trust_remote_code:
        return fingerprint([folder_digest(folder), spec.config, _code_digest(folder, key)])
    return fingerprint([folder_digest(folder), spec.config])


def _code_digest(folder: Path, key: str) -> str:
    """Identity of a model's own code: the Python files of its folder and of repositories that it takes classes from."""
    folders = {"": folder}
    for file in folder.glob("*.json"):  # of the model, its tokenizer, its image processor
        about = json.loads(file.read_text())
        classes = (about.get("auto_map") or {}) if isinstance(about, dict) else {}
        for value in classes.values() if isinstance(classes, dict) else ():
            for name in value if isinstance(value, list) else [value]:  # a tokenizer's are slow and fast
                repository, separator, _ = str(name).partition("--")
                if separator and repository not in folders:
                    local = Path(repository)
                    folders[repository] = local if local.is_dir() else _fetch(repository, None, ["*.py"], key)
    files = {name: sorted(where.rglob("*.py")) for name, where in sorted(folders.items())}
    return fingerprint(
        [[name, str(f.relative_to(folders[name])), file_digest([f])] for name, found in files.items() for f in found]
    )


def folder_digest(folder: Path) -> str:
    """Identity of a saved model: its safetensors and its config, without what only says who saved it."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"):
        config.pop(name, None)
    return fingerprint([file_digest(folder.glob("*.safetensors")), config])


def processor_digest(processor: Any) -> str:
    """Identity of a tokenizer or image processor: what it does, not where it came from."""
    if type(processor).__module__.startswith("transformers_modules."):  # transformers' copies of a model's own code
        code = file_digest(Path(inspect.getfile(type(processor))).parent.glob("*.py"))
        return fingerprint([code, _settings_digest(processor)])
    return _settings_digest(processor)


def _settings_digest(processor: Any) -> str:
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is None:
        values = processor.to_dict() if hasattr(processor, "to_dict") else processor.init_kwargs
        return fingerprint(json.loads(json.dumps({k: v for k, v in values.items() if k[0] != "_"}, default=str)))
    state = json.loads(backend.to_str())
    state.pop("truncation"), state.pop("padding")  # left over from the last call
    special = {k: str(v) for k, v in (processor.special_tokens_map or {}).items()}
    names = ("model_input_names", "truncation_side", "pad_token_type_id")
    values = {name: getattr(processor, name, None) for name in names}
    values["padding_side"] = processor.init_kwargs.get("padding_side", type(processor).padding_side)  # as it was saved
    parts = [state, special, values]
    if processor.padding_side == "left":  # as rows are padded; earlier versions padded all of them on the right
        parts.append("padded on the left")
    return fingerprint(parts)


def default_dtype(setting: str) -> str:
    """A teacher's compute dtype: bf16 where a GPU has it, else fp32."""
    if setting != "auto":
        return setting
    return (
        "bfloat16"
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        else "float32"
    )
