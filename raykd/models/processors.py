"""The tokenizer or image processor that goes with a model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.common.errors import ConfigError
from raykd.common.late import Late
from raykd.models.problems import hub_unreachable, short_reason
from raykd.tasks.pictures import in_two_steps

if TYPE_CHECKING:
    import transformers

    from raykd.models.opened import OpenedModel
else:
    transformers = Late("transformers")


def load_processor(model: OpenedModel) -> Any:
    """Raises ConfigError if there is none, or if it cannot be used; HubError if the hub cannot be reached."""
    spec, key = model.spec, f"{model.key}.tokenizer"
    source, revision = model.processor_source
    if spec.tokenizer_source:
        source, revision = spec.tokenizer_source, spec.revision if spec.tokenizer_source == spec.pretrained else None
    pictures = model.task.processor == "image_processor"
    if source is None:
        if pictures:
            return _default_image_processor(spec.config)
        hint = "Give a folder or hub id that holds a tokenizer"
        raise ConfigError(key, None, "a text model from scratch needs one", hint)
    # By name because looking at the other class would import it, which takes seconds.
    loader = getattr(transformers, "AutoImageProcessor" if pictures else "AutoTokenizer")
    options: dict[str, Any] = {"backend": "pil"} if pictures else {}
    try:
        processor = loader.from_pretrained(
            source, revision=revision, trust_remote_code=spec.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        if not Path(source).is_dir() and "offline" in f"{error} {error.__cause__}".lower():
            raise hub_unreachable(key, source) from None
        raise ConfigError(
            key,
            source,
            f"no {model.task.processor} can be loaded from it ({short_reason(error)})",
            "Give the folder or hub id that holds it",
        ) from None
    if pictures:
        _check_image_processor(processor, source, key)
    else:
        _adapt_tokenizer(processor, source, model, key)
    return processor


def _adapt_tokenizer(tokenizer: Any, source: str, model: OpenedModel, key: str) -> None:
    """Set its padding token, its padding side and the inputs it gives to what the model needs."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers made an empty one
        hint = "Give the folder or hub id that holds it"
        raise ConfigError(key, source, "no tokenizer can be loaded from it (its vocabulary is empty)", hint)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            hint = "Save it with a pad_token, or give another tokenizer"
            raise ConfigError(key, source, "it has no padding token, which batches need", hint)
        tokenizer.pad_token = tokenizer.eos_token  # as is usual with decoders; it is masked in attention
    if "token_type_ids" in tokenizer.model_input_names and not _takes_token_types(model):
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what save_pretrained writes
    _set_padding_side(tokenizer, model)
    if model.task.kind == "token-classification":
        _begin_words_with_spaces(tokenizer)


def _begin_words_with_spaces(tokenizer: Any) -> None:
    """Let a byte-level tokenizer (RoBERTa, GPT-2, ModernBERT) read single words as it reads them within a text.

    Otherwise "rejects" among words would be the tokens of a word's inside. transformers 4 refused to do that.
    """
    from tokenizers import pre_tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole: Any = getattr(backend, "pre_tokenizer", None)
    several = isinstance(whole, pre_tokenizers.Sequence)
    for part in list(whole) if several else [whole]:
        if isinstance(part, pre_tokenizers.ByteLevel) and not part.add_prefix_space:
            part.add_prefix_space = True
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True  # what it is saved with


def _takes_token_types(model: OpenedModel) -> bool:
    """Whether the model takes token types as an input. With a single type there is nothing to tell apart."""
    types = getattr(model.config, "type_vocab_size", None)
    if types is not None or model.spec.trust_remote_code:
        return types != 1
    # Imports the model's module, which is why the config is looked at first.
    kind = getattr(transformers, model.task.auto_model)._model_mapping.get(type(model.config), None)
    return kind is None or "token_type_ids" in inspect.signature(kind.forward).parameters


def _set_padding_side(tokenizer: Any, model: OpenedModel) -> None:
    """Set the side on which this model's rows can be padded without changing their logits.

    XLNet classifies by its last position, so it needs the left, whatever its tokenizer says. Models that number
    positions from the batch's first column (BERT, GPT-2) need the right. The other kinds that transformers has allow
    both. A model with its own code is padded as its tokenizer says.
    """
    if model.spec.trust_remote_code:
        return
    if model.saved_config.get("model_type") == "xlnet":
        tokenizer.init_kwargs["padding_side"] = "left"  # what it is saved with
        tokenizer.padding_side = "left"
    else:
        tokenizer.padding_side = "right"


def _check_image_processor(processor: Any, source: str, key: str) -> None:
    """Check that it gives pictures as tensors (channels, height, width), and nothing else that its model needs."""
    try:
        in_two_steps(processor)
    except Exception as error:  # processors raise exceptions of any type
        reason = f"its image processor, {type(processor).__name__}, cannot be used ({short_reason(error)})"
        hint = "Use a model whose image processor gives pixel_values of one size"
        raise ConfigError(key, source, reason, hint) from None


def _default_image_processor(config: dict[str, Any]) -> Any:
    """For an image model from scratch: resizes to the config's image_size and scales values to -1..1."""
    size, channels = config.get("image_size", 224), config.get("num_channels", 3)
    return transformers.ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )
