"""Language models: their body and head apart, so that only the tokens that are decisions cost logits.

A causal language model is a body, `model.base_model`, and a head, which turns the last hidden state of a position into
logits over the vocabulary. Logits of a whole batch would not fit into memory: 32 rows of 1,024 tokens at a vocabulary
of 150,000 are 20 GB in fp32. So a model that is called with `positions` returns the states there, and its head.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raykd.common.late import Late

if TYPE_CHECKING:
    import torch
else:
    torch = Late("torch")

_TOKENS = 8  # of the rows that a model is tried on
_TOLERANCE = 1e-4  # relative to the largest absolute logit; the same operations in fp32 differ by less


@dataclass(frozen=True)
class States:
    """What a language model returns for a batch with `positions`.

    states: (B, H, d) the last hidden states at these positions, after the final norm.
    head: states (..., d) to logits (..., V).
    """

    states: torch.Tensor
    head: LanguageHead


def body_of(model: Any) -> Any:
    """The part of a language model that gives hidden states; the model itself if that is not known.

    Llama 4's text model has it under another name than the one that its class gives for it.
    """
    if model.base_model is not model:
        return model.base_model
    rest = [part for part in model.children() if part is not model.get_output_embeddings()]
    return rest[0] if len(rest) == 1 else model


class LanguageHead:
    """A model's head, and what the model does to its output: a scale (Cohere, Granite), soft-capping (Gemma, xLSTM)."""

    def __init__(self, model: Any) -> None:
        body, last = body_of(model), model.get_output_embeddings()
        outside: list[torch.nn.Module] = [part for part in model.children() if part is not body]
        if len(outside) > 1:  # ELECTRA's and ModernBERT's heads are two modules, of which the embeddings are the second
            outside = [part for part in outside if part is not last] + [last] if last in outside else [last]
        self.module = outside[0] if len(outside) == 1 else torch.nn.Sequential(*outside)
        config = model.config.get_text_config()
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        self.divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        self.cap: float | None = next((cap for name in caps if (cap := getattr(config, name, None))), None)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        logits = self.module(states)
        if self.scale != 1:
            logits = logits * self.scale
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def read_at_positions(model: Any) -> None:
    """Change `model` so that it returns `States` if it is called with `positions`, (B, H) int64.

    Without them it is what it was, for generation. Weights and names do not change. A model whose body is not a part of
    it stays as it is; `misfit` says so.
    """
    body = body_of(model)
    if body is model:
        return
    original, head = model.forward, LanguageHead(model)
    options = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}

    @functools.wraps(original)  # `generate` looks at its parameters
    def forward(*args: Any, positions: torch.Tensor | None = None, **inputs: Any) -> Any:
        if positions is None:
            return original(*args, **inputs)
        states = body(*args, **inputs, **options)[0]  # (B, L, d)
        return States(states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1])), head)

    model.forward = forward


def misfit(model: Any) -> str:
    """Why a language model cannot be used; "" if it can. Tried on two short rows that differ in their last token.

    Its logits must be those of its head on the states of its body, and those of a token must not depend on the tokens
    after it.
    """
    if body_of(model) is model or model.get_output_embeddings() is None:
        return f"{type(model).__name__} has no language-model head that raykd can tell from its body"
    vocabulary = model.get_output_embeddings().weight.shape[0]
    first = torch.linspace(0.3, 0.9, _TOKENS).mul(vocabulary).long()
    tokens = torch.stack([first, torch.cat([first[:-1], first[:1]])])  # (2, L)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        own = model(**inputs, **options).logits.float()
        found = model(**inputs, positions=torch.arange(_TOKENS).expand(2, -1))
        ours = found.head(found.states).float()
    if own.shape != ours.shape:
        return f"its head gives logits of the shape {tuple(ours.shape)}, and the model {tuple(own.shape)}"
    most = _TOLERANCE * own.abs().max().item()
    if (difference := (own - ours).abs().max().item()) > most:
        return f"its logits are not those of its head: they differ by {difference:.2g}, so it does more after its body"
    if (difference := (own[0, :-1] - own[1, :-1]).abs().max().item()) > most:
        return f"a token's logits change by {difference:.2g} with the token after it, so it sees what it is to predict"
    return ""
