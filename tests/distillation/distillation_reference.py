"""The design's arithmetic once more, in float64 numpy, one decision at a time. Shares no code with raykd."""

import numpy as np
import torch

NO_LABEL = -100


def softmax(logits, allowed, temperature=1.0):
    """(C,) probabilities over the allowed classes, 0 elsewhere."""
    out = np.zeros(len(logits))
    if allowed.any():
        z = np.asarray(logits, np.float64)[allowed] / temperature
        e = np.exp(z - z.max())
        out[allowed] = e / e.sum()
    return out


def weights(logits, labels, mask, W, by="decision", skip=False):
    """((M, B, H) weights, (B, H) distill) of weighted distillation."""
    M, B, H, _ = logits.shape
    weight, distill = np.ones((M, B, H)), np.array(mask.any(-1))
    for b in range(B):
        labelled = [h for h in range(H) if labels[b, h] != NO_LABEL]
        right = np.zeros((M, H), bool)
        for m in range(M):
            for h in labelled:
                allowed = np.flatnonzero(mask[b, h])
                right[m, h] = allowed[np.argmax(logits[m, b, h, allowed])] == labels[b, h]
        for h in labelled:
            ok = right[:, h] if by == "decision" else right[:, labelled].all(1)
            wrong = int((~ok).sum())
            if 0 < wrong < M:
                weight[:, b, h] = np.where(ok, 1 + wrong * (1 - W) / (M - wrong), W)
            if wrong == M and skip:
                distill[b, h] = False
    return weight, distill


def target(logits, weight, mask, temperature, pool="logits"):
    """(B, H, C) ensemble target."""
    M, B, H, C = logits.shape
    out = np.zeros((B, H, C))
    for b in range(B):
        for h in range(H):
            z, w = logits[:, b, h].astype(np.float64), weight[:, b, h]
            if pool == "logits":
                out[b, h] = softmax((w[:, None] * z).sum(0) / M, mask[b, h], temperature)
            else:
                out[b, h] = sum(w[m] / M * softmax(z[m], mask[b, h], temperature) for m in range(M))
    return out


def loss(student, target, labels, mask, distill, alpha, temperature, epsilon=0.0, t2=True):
    """(loss, KL, label term, gradient of the loss on the student's logits), the last in closed form."""
    B, H, _ = student.shape
    kl, ce = [], []
    grad_kl, grad_ce = np.zeros(student.shape), np.zeros(student.shape)
    for b in range(B):
        for h in range(H):
            allowed = mask[b, h]
            if distill[b, h]:
                p, q = target[b, h], softmax(student[b, h], allowed, temperature)
                used = p > 0
                kl.append(float((p[used] * np.log(p[used] / q[used])).sum()))
                grad_kl[b, h] = (q - p) / temperature
            if labels[b, h] != NO_LABEL:
                q = softmax(student[b, h], allowed)
                gold = epsilon * allowed / allowed.sum()
                gold[labels[b, h]] += 1 - epsilon
                ce.append(float(-(gold[allowed] * np.log(q[allowed])).sum()))
                grad_ce[b, h] = q - gold
    scale = alpha * (temperature**2 if t2 else 1)
    kl_mean, ce_mean = sum(kl) / max(len(kl), 1), sum(ce) / max(len(ce), 1)
    grad = scale * grad_kl / max(len(kl), 1) + (1 - alpha) * grad_ce / max(len(ce), 1)
    return scale * kl_mean + (1 - alpha) * ce_mean, kl_mean, ce_mean, grad


def random_batch(seed, M=3, B=4, H=2, C=5):
    """(teachers (M, B, H, C) fp16, student (B, H, C) fp32, labels (B, H), mask (B, H, C)).

    Some decisions have no label, some do not exist, some classes are masked; gold is always allowed.
    Teachers' logits are stored as the store would: 0 in masked classes.
    """
    rng = np.random.default_rng(seed)
    mask = rng.random((B, H, C)) < 0.7
    mask[..., 0] |= ~mask.any(-1)
    mask &= (rng.random((B, H)) < 0.85)[..., None]
    labels = np.full((B, H), NO_LABEL)
    for b in range(B):
        for h in range(H):
            if mask[b, h].any() and rng.random() < 0.7:
                labels[b, h] = rng.choice(np.flatnonzero(mask[b, h]))
    teachers = np.where(mask, rng.normal(0, 2, (M, B, H, C)), 0)
    student = rng.normal(0, 2, (B, H, C))
    return (
        torch.tensor(teachers, dtype=torch.float16),
        torch.tensor(student, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(mask),
    )
