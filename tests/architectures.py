"""Every kind of model that transformers has for a task, at toy size, built from its config alone."""

from typing import Any

import transformers
from transformers.models.auto import modeling_auto

VOCABULARY = 64  # of tiny.save_tokenizer
SPECIAL = {"bos_token_id": 2, "cls_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}

# What a size is called, in one config or another, and the most that it may be.
_LIMITS = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "n_inner", "hidden_dim", "dff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "feed_forward_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "entity_emb_size", "shape_embed_dim", "pronunciation_embed_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "mamba_headdim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_selects"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_dt_rank", "expert_dim"), 16),
    **dict.fromkeys(("image_size", "num_latents", "d_latents", "entity_vocab_size", "num_hash_buckets"), 32),
    **dict.fromkeys(
        ("max_2d_position_embeddings", "max_xpath_tag_unit_embeddings", "max_xpath_subs_unit_embeddings"), 64
    ),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 64),
    "patch_size": 8,
    "vocab_size": VOCABULARY,
}

# The same for lists with a value a stage: widths, which double, and numbers of layers.
_WIDTHS = {"hidden_sizes", "embed_dims", "conv_layer_sizes", "embed_dim", "neck_hidden_sizes"}
_STAGES = {
    **dict.fromkeys(_WIDTHS, 16),
    **dict.fromkeys(("depths", "layer_depths", "num_blocks", "depth", "stage_depths"), 1),
}


def kinds(task: str) -> dict[str, str]:
    """Of "SEQUENCE_CLASSIFICATION", ...: transformers' kinds of models and the first class of each."""
    names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
    return {kind: found if isinstance(found, str) else found[0] for kind, found in names.items()}


def small_config(kind: str, overrides: dict[str, Any]) -> transformers.PretrainedConfig:
    """The kind's default config with every size in it, and in its parts, made small."""
    made = transformers.CONFIG_MAPPING[kind]
    return made(**(_small_values(made()) | overrides))


def _small_values(config: transformers.PretrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            values[name] = {"model_type": value.model_type, **_small_values(value)}
        elif name in _LIMITS and isinstance(value, int):
            values[name] = min(value, _LIMITS[name])
        elif name in SPECIAL and isinstance(value, int):
            values[name] = SPECIAL[name]
        elif name in _STAGES and isinstance(value, (list, tuple)):
            values[name] = [_STAGES[name] * 2**i if name in _WIDTHS else 1 for i in range(len(value))]
    if isinstance(getattr(config, "pad_token_id", None), int) and config.pad_token_id >= VOCABULARY:
        values["pad_token_id"] = 1
    if config.is_encoder_decoder:
        values["decoder_start_token_id"] = SPECIAL["decoder_start_token_id"]
    return values


# What a kind needs at this size that its default config does not have.
SETTINGS: dict[str, dict[str, Any]] = {
    **{kind: {"head_dim": 8} for kind in ("ministral", "hunyuan_v1_dense", "hunyuan_v1_moe")},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "donut-swin": {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 2, "patch_size": 2},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "pad_token_id": 0},
    "focalnet": {"embed_dim": 8, "patch_size": 4},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "hiera": {"depths": [1, 1, 1, 1], "embed_dim": 8, "image_size": [64, 64], "num_heads": [1, 2, 4, 8]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "hidden_size": 32},
    "swin": {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 2, "patch_size": 2},
    "swinv2": {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 2, "patch_size": 2},
}

_SIZES = "its sizes depend on one another in a way that this shrinking does not keep"
_AUTOCAST = "transformers' own code of it fails under bf16 autocast on a CPU"
_CACHE = "its cache needs both kinds of attention layers, so more layers than two"
_MIXED = "it mixes recurrent and attention layers, whose numbers must be those of the default config"
_INPUTS = "it needs inputs that text or pictures alone do not give"
_FLAT = "untrained at this size, it gives equal logits to all pictures"
_LIBRARY = "it needs a library that is no dependency"
_UNEXPLAINED = "its logits after loading or beside a longer row differ at this size; the reason is not known yet"

# Of each task: the kinds that are not tested, with the reason.
LEFT_OUT: dict[str, dict[str, str]] = {
    "SEQUENCE_CLASSIFICATION": {
        **dict.fromkeys(("axk1", "cohere_compass_text", "lilt", "markuplm", "mistral4", "nemotron"), _SIZES),
        **dict.fromkeys(("deberta", "xmod"), _AUTOCAST),
        **dict.fromkeys(("jamba", "qwen3_5", "qwen3_5_text", "qwen3_next"), _CACHE),
        **dict.fromkeys(("zamba", "zamba2"), _MIXED),
        **dict.fromkeys(("funnel", "t5gemma", "t5gemma2"), _UNEXPLAINED),
        "layoutlmv2": _LIBRARY,
        "reformer": "it pads rows by itself and trains only at full length",
    },
    "QUESTION_ANSWERING": {
        **dict.fromkeys(("lilt", "markuplm", "nemotron"), _SIZES),
        **dict.fromkeys(("deberta", "xmod"), _AUTOCAST),
        "funnel": _UNEXPLAINED,
        "layoutlmv2": _LIBRARY,
        "longformer": "it wants three separators, as RoBERTa's tokenizer writes them",
        "lxmert": _INPUTS,
        "qwen3_next": _CACHE,
        "reformer": "it pads rows by itself and trains only at full length",
    },
    "IMAGE_CLASSIFICATION": {
        **dict.fromkeys(("bit", "cvt", "deit", "efficientnet", "hgnet_v2", "levit", "mobilevitv2"), _SIZES),
        **dict.fromkeys(("perceiver", "pvt", "pvt_v2", "textnet"), _SIZES),
        **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "mobilevit", "swiftformer"), _FLAT),
        **dict.fromkeys(("dinat", "timm_wrapper"), _LIBRARY),
        **dict.fromkeys(("imagegpt", "shieldgemma2", "siglip2"), _INPUTS),
        "pp_lcnet": "its output has no logits",
    },
}

# Of each task: the kinds whose logits depend on the padding beside a row, whichever its side.
_ACROSS = "it mixes the positions after a row's end into the row: convolutions, Fourier transforms, landmarks, hashing"
PADDING_CHANGES: dict[str, dict[str, str]] = {
    "SEQUENCE_CLASSIFICATION": dict.fromkeys(("convbert", "fnet", "mobilebert", "nystromformer", "yoso"), _ACROSS),
    "QUESTION_ANSWERING": dict.fromkeys(("canine", "convbert", "fnet", "mobilebert", "nystromformer", "yoso"), _ACROSS),
    "IMAGE_CLASSIFICATION": {},
}
