"""Peak memory of a language model's loss over chunks of tokens, compared with the same loss on whole tensors.

    python benchmarks/lm_memory.py [--quick]

Three teachers' hidden states, KD at T = 2, a vocabulary of 150,000. Each measurement is a process of its own, and its
peak is that of the loss and its gradients beyond the process before it. The last line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch

from raykd.distillation import distillation_loss, ensemble_target
from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.linear_head import LinearHead
from raykd.distillation.taught import Hidden

VOCABULARY, WIDTH, TEACHERS = 150_000, 64, 3


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(kind: str, tokens: int) -> tuple[float, float]:
    """GB, and the loss."""
    torch.manual_seed(0)
    weights = [0.1 * torch.randn(VOCABULARY, WIDTH) for _ in range(TEACHERS + 1)]
    said = [torch.randn(tokens, WIDTH) for _ in range(TEACHERS)]
    states, own = torch.randn(tokens, WIDTH, requires_grad=True), weights[-1].requires_grad_()
    labels = torch.randint(0, VOCABULARY, (tokens,))
    ones, everywhere = torch.ones(TEACHERS, tokens), torch.ones(tokens, dtype=torch.bool)
    before = peak_gb()
    if kind == "chunks":
        hidden = [Hidden(LinearHead(w), s.__getitem__) for s, w in zip(said, weights, strict=False)]
        taught = Taught(ones, everywhere, hidden=hidden)
        loss = chunked_loss(states, LinearHead(own), [own], labels, taught, Settings(0.5, 2.0)).loss
    else:
        with torch.no_grad():
            logits = torch.stack([s @ w.T for s, w in zip(said, weights, strict=False)])[:, None]
            target = ensemble_target(logits, ones[:, None], 2.0)
        loss = distillation_loss((states @ own.T)[None], target, labels[None], alpha=0.5, temperature=2.0).loss
    loss.backward()
    return peak_gb() - before, float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 512 tokens")
    parser.add_argument("--whole-up-to", type=int, default=1024, help="tokens; 1,024 on whole tensors take 6 GB")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(*measure(given.one[0], int(given.one[1])))
        return
    found: dict[str, dict[int, float]] = {"chunks": {}, "whole": {}}
    for tokens in (256, 512) if given.quick else (256, 512, 1024, 2048, 4096):
        losses = []
        for kind, peaks in found.items():
            if kind == "whole" and tokens > given.whole_up_to:
                continue
            command = [sys.executable, __file__, "--one", kind, str(tokens)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[tokens], loss = map(float, done.stdout.split())
            losses.append(loss)
        shown = ", ".join(f"{kind} {peaks[tokens]:.2f} GB" for kind, peaks in found.items() if tokens in peaks)
        print(f"{tokens:5} tokens: {shown}; losses {', '.join(f'{loss:.5f}' for loss in losses)}")
    print(json.dumps({f"{kind}_gb": peaks for kind, peaks in found.items()}))


if __name__ == "__main__":
    main()
