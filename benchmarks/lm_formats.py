"""What each form of kept logits costs and gets wrong: bytes a token, and the angle of the student's gradient.

    python benchmarks/lm_formats.py --model FOLDER --data FOLDER [--quick]

On real text, for every token: the angle, in degrees, between the gradient that the student's last hidden state gets
from a form and the exact one, at T = 1, 2 and 4. The student is the teacher with noise on its weights, so it is near
its teacher, as at the end of a training; far from it every form looks good. Forms: `hidden`, the states in fp16;
`top_k`, with all other classes as one class of known mass (what raykd keeps; at T above 1 the mass is that at T = 1,
softened as one logit); and the renormalized K, as most tools keep them. The last line is one JSON object.
"""

import argparse
import json
import platform
from typing import Any

import numpy as np
import torch
import transformers
from datasets import load_dataset

from raykd.distillation.packed import pack_hidden, pack_scores, read_hidden
from raykd.logits.keep import Keep

TEMPERATURES = (1.0, 2.0, 4.0)


def texts(data: str, rows: int) -> list[str]:
    return load_dataset(data, split=f"train[:{rows}]")["prompt"]


@torch.no_grad()
def states_of(model: Any, tokenizer: Any, rows: list[str], length: int) -> torch.Tensor:
    """(D, d) last hidden states of all tokens, row by row."""
    found = []
    for row in rows:
        tokens = tokenizer(row, truncation=True, max_length=length, return_tensors="pt")
        found.append(model.base_model(**tokens).last_hidden_state[0])
    return torch.cat(found)


def with_noise(model: Any, share: float) -> Any:
    """Each weight matrix gets normal noise of this share of its own standard deviation."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.base_model.parameters():
            if weight.dim() == 2 and weight is not model.get_output_embeddings().weight:
                weight += share * weight.std() * torch.randn(weight.shape, generator=draw)
    return model


def gradients(teacher: torch.Tensor, student: torch.Tensor, k: int | None, bucket: bool, t: float) -> torch.Tensor:
    """(c, V) gradient of the divergence with respect to the student's logits, times T.

    teacher, student: (c, V) logits. k: classes that are kept; None: all.
    """
    q = torch.softmax(student / t, -1)
    if k is None:
        return q - torch.softmax(teacher / t, -1)
    values, classes = teacher.topk(k, -1)
    if not bucket:  # the target is 0 on all other classes
        return q.scatter_add(-1, classes, -torch.softmax(values / t, -1))
    total = torch.logsumexp(teacher, -1, keepdim=True)
    tail = torch.log1p(-(values - total).exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    p = torch.softmax(torch.cat([values - total, tail], -1) / t, -1)  # (c, K + 1)
    q_tail = (1 - q.gather(-1, classes).sum(-1, keepdim=True)).clamp(min=1e-7)
    others = q * (1 - p[:, -1:] / q_tail)
    return others.scatter(-1, classes, q.gather(-1, classes) - p[:, :-1])


def angle(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1)
    return torch.rad2deg(torch.arccos(cosine)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M: a local folder or a hub id")
    parser.add_argument("--data", required=True, help="rows with a prompt: a local folder or a hub id")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--noise", type=float, default=0.05, help="of the student's weights")
    parser.add_argument("--quick", action="store_true", help="two rows")
    given = parser.parse_args()
    auto, rows = transformers.AutoModelForCausalLM, texts(given.data, 2 if given.quick else given.rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = auto.from_pretrained(given.model, dtype=torch.float32)
    head = model.get_output_embeddings().weight.detach()
    teacher = states_of(model, tokenizer, rows, given.length)
    student = states_of(with_noise(model, given.noise), tokenizer, rows, given.length)
    ks = (16, 64, 256)
    angles: dict[tuple[str, float], list[np.ndarray]] = {}
    mass: dict[tuple[int, float], list[np.ndarray]] = {}
    apart, width = [], teacher.shape[1]
    for start in range(0, len(teacher), 64):
        states = teacher[start : start + 64]
        exact, own = states @ head.T, student[start : start + 64] @ head.T
        log_p, log_q = torch.log_softmax(exact, -1), torch.log_softmax(own, -1)
        apart.append((log_p.exp() * (log_p - log_q)).sum(-1))
        kept = pack_hidden(pack_scores(exact, exact.argmax(-1)), states)
        rounded = read_hidden(kept, width) @ head.T
        for t in TEMPERATURES:
            right = gradients(exact, own, None, False, t) @ head
            forms = {"hidden": gradients(rounded, own, None, False, t)}
            for k in ks:
                forms[f"top {k}"] = gradients(exact, own, k, True, t)
                forms[f"top {k}, renormalized"] = gradients(exact, own, k, False, t)
                mass.setdefault((k, t), []).append(torch.softmax(exact / t, -1).topk(k, -1).values.sum(-1).numpy())
            for name, found in forms.items():
                angles.setdefault((name, t), []).append(angle(found @ head, right))
    tokens, vocabulary = len(teacher), head.shape[0]
    kept_forms = {"all": Keep(), "hidden": Keep("hidden")} | {f"top {k}": Keep("top_k", k) for k in ks}
    size = {name: 2 * keep.numbers(vocabulary, width) for name, keep in kept_forms.items()}
    print(
        f"{platform.machine()}, torch {torch.__version__}, {tokens} tokens, vocabulary {vocabulary}, a student whose "
        f"KL divergence from its teacher is {float(torch.cat(apart).median()):.3f} nats (median)"
    )
    print("| form | bytes a token | " + " | ".join(f"T = {t:g}: angle (and mass)" for t in TEMPERATURES) + " |")
    print("| --- | ---: |" + " ---: |" * len(TEMPERATURES))
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(n for n, _ in angles):
        cells = []
        for t in TEMPERATURES:
            value = float(np.median(np.concatenate(angles[name, t])))
            kept_k = next((k for k in ks if name == f"top {k}"), None)
            share = f" ({np.median(np.concatenate(mass[kept_k, t])):.1%})" if kept_k else ""
            cells.append(f"{value:.2g}{share}")
            table.setdefault(name, {})[f"T={t:g}"] = value
        print(f"| {name} | {size[name.split(',')[0]]:,} | " + " | ".join(cells) + " |")
    print(json.dumps({"angle_degrees": table, "bytes_per_token": size}))


if __name__ == "__main__":
    main()
