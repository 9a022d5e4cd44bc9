"""The chunked loss against the loss on whole tensors, and against float64."""

import pytest
import torch

from raykd.distillation import distillation_loss, ensemble_target, teacher_weights
from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.gradients import bucket_divergence
from raykd.distillation.linear_head import LinearHead
from raykd.distillation.packed import (
    first_largest,
    largest,
    pack_hidden,
    pack_scores,
    pack_top_k,
    read_hidden,
    read_scores,
    read_top_k,
)

D, WIDTH, CLASSES, TEACHERS = 37, 8, 50, 3
METHODS = {
    "kd": Settings(alpha=0.5, temperature=2.0),
    "probabilities": Settings(alpha=1.0, temperature=3.0, pool="probabilities", scale_by_t2=False),
    "reverse": Settings(alpha=0.7, temperature=1.5, divergence="reverse_kl"),
    "jsd": Settings(alpha=0.7, divergence="jsd", beta=0.3, epsilon=0.1),
    "finetune": Settings(alpha=0.0, epsilon=0.1),
}


class Situation:
    """A student's states and head, three teachers with their own heads and widths, and labels of which some lack."""

    def __init__(self, dtype=torch.float32):
        draw = torch.Generator().manual_seed(5)
        self.states = torch.randn(D, WIDTH, generator=draw).to(dtype).requires_grad_()
        self.weight = torch.randn(CLASSES, WIDTH, generator=draw).to(dtype).requires_grad_()
        widths = (4, 6, 8)
        self.teacher_states = [torch.randn(D, width, generator=draw) for width in widths]
        self.heads = [LinearHead(torch.randn(CLASSES, width, generator=draw)) for width in widths]
        self.labels = torch.randint(0, CLASSES, (D,), generator=draw)
        self.labels[::5] = -100
        self.distill = torch.rand(D, generator=draw) > 0.2
        self.logits = torch.stack([h(s) for h, s in zip(self.heads, self.teacher_states, strict=True)])
        weighed = teacher_weights(self.logits[:, None], self.labels[None], weighting="likelihood")
        self.weights = weighed.weights[:, 0]

    def head(self, states):
        return states @ self.weight.T

    def taught(self):
        by_slice = [lambda part, h=h, s=s: h(s[part]) for h, s in zip(self.heads, self.teacher_states, strict=True)]
        return Taught(self.weights, self.distill, by_slice)

    def chunked(self, settings, chunk, taught=None):
        taught = taught or (self.taught() if settings.alpha else None)
        found = chunked_loss(self.states, self.head, [self.weight], self.labels, taught, settings, chunk=chunk)
        return found, *torch.autograd.grad(found.loss, [self.states, self.weight])

    def whole(self, settings):
        log = settings.divergence != "forward_kl"
        target = ensemble_target(
            self.logits[:, None], self.weights[:, None], settings.temperature, pool=settings.pool, log=log
        )
        found = distillation_loss(
            self.head(self.states)[None],
            target if settings.alpha else None,
            self.labels[None],
            alpha=settings.alpha,
            temperature=settings.temperature,
            distill=self.distill[None],
            scale_by_t2=settings.scale_by_t2,
            epsilon=settings.epsilon,
            divergence=settings.divergence,
            beta=settings.beta,
        )
        return found, *torch.autograd.grad(found.loss, [self.states, self.weight])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [1, 10, 100, None])
def test_equals_the_loss_on_whole_tensors(name, chunk):
    situation = Situation()
    for mine, theirs in zip(situation.chunked(METHODS[name], chunk), situation.whole(METHODS[name]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def test_value_and_gradient_in_float64():
    """KD by its definition, alpha T^2 mean KL(p || q) + (1 - alpha) mean CE, without any function of ours."""
    situation, settings = Situation(), METHODS["kd"]
    states, weight = (x.detach().double().requires_grad_() for x in (situation.states, situation.weight))
    pooled = (situation.weights.double()[..., None] * situation.logits.double()).sum(0) / (3 * 2.0)
    p = pooled.exp() / pooled.exp().sum(-1, keepdim=True)
    s = states @ weight.T
    q = (s / 2).exp() / (s / 2).exp().sum(-1, keepdim=True)
    q1 = s.exp() / s.exp().sum(-1, keepdim=True)
    kl = (p * (p / q).log()).sum(-1)[situation.distill].mean()
    labelled = situation.labels >= 0
    ce = -q1[labelled].gather(1, situation.labels[labelled][:, None]).log().mean()
    expected = 0.5 * 4 * kl + 0.5 * ce
    found, *gradients = situation.chunked(settings, 10)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.distillation.item() == pytest.approx(kl.item(), rel=1e-5)
    for mine, exact in zip(gradients, torch.autograd.grad(expected, [states, weight]), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-6)


def packed_states(situation):
    true = situation.labels.clamp(min=0)
    return [
        pack_hidden(pack_scores(h(s), true), s) for h, s in zip(situation.heads, situation.teacher_states, strict=True)
    ]


def test_hidden_states_in_fp16_give_the_loss_of_all_logits_to_rounding():
    situation = Situation()
    packed = packed_states(situation)
    by_slice = [
        lambda part, h=h, p=p, w=s.shape[-1]: h(read_hidden(p[part], w))
        for h, p, s in zip(situation.heads, packed, situation.teacher_states, strict=True)
    ]
    mine = situation.chunked(METHODS["kd"], 10, Taught(situation.weights, situation.distill, by_slice))
    for found, exact in zip(mine, situation.whole(METHODS["kd"]), strict=True):
        torch.testing.assert_close(found, exact, rtol=5e-3, atol=5e-4)


def test_top_k_of_the_whole_vocabulary_has_the_gradient_of_the_mixture():
    situation, settings = Situation(), Settings(alpha=0.6, pool="probabilities")
    true = situation.labels.clamp(min=0)
    packed = [pack_top_k(pack_scores(logits, true), logits, CLASSES) for logits in situation.logits]
    known = [lambda part, p=p: read_top_k(p[part]) for p in packed]
    _, *mine = situation.chunked(settings, 10, Taught(situation.weights, situation.distill, top_k=known))
    _, *exact = situation.whole(settings)
    for found, gradient in zip(mine, exact, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-2, atol=2e-4)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient():
    situation = Situation()
    states, head = situation.teacher_states[2].clone().requires_grad_(), situation.heads[2]
    one = torch.ones(1, D)
    everywhere = torch.ones(D, dtype=torch.bool)
    packed = pack_top_k(pack_scores(head(states), situation.labels.clamp(min=0)), head(states).detach(), 7)
    forms = {
        "logits": Taught(one, everywhere, [lambda part: head(states[part].detach())]),
        "top_k": Taught(one, everywhere, top_k=[lambda part: read_top_k(packed[part])]),
    }
    for name, taught in forms.items():
        found = chunked_loss(states, head, [head.weight], situation.labels, taught, Settings(alpha=1.0), chunk=10)
        (gradient,) = torch.autograd.grad(found.loss, [states])
        assert abs(found.loss.item()) < 2e-6, name
        assert gradient.abs().max() < (1e-7 if name == "logits" else 2e-4), name  # logits are fp16 in the second


def test_divergence_with_a_bucket_by_hand():
    """Teacher (1/2, 1/4, and 1/4 for all others), student (1/4, 1/4, 1/4, 1/4) over four classes."""
    log_q = torch.full((1, 4), 0.25).log()
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.10]]).log()
    known = read_top_k(pack_top_k(pack_scores(logits, torch.tensor([0])), logits, 2))
    expected = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()  # 1/2 log 2 + 0 + 1/4 log (1/4 / 1/2)
    assert bucket_divergence(known, log_q).item() == pytest.approx(expected.item(), abs=1e-4)


def test_counts_of_the_whole_step_make_parts_add_up():
    situation, settings = Situation(), METHODS["kd"]
    labelled, distilled = (situation.labels >= 0).sum(), situation.distill.sum()
    taught, total = situation.taught(), 0.0
    for part in (slice(0, 20), slice(20, D)):
        some = Taught(
            taught.weights[:, part],
            taught.distill[part],
            [lambda inner, of=of, p=part: of(p)[inner] for of in taught.logits],
        )
        found = chunked_loss(
            situation.states[part],
            situation.head,
            [situation.weight],
            situation.labels[part],
            some,
            settings,
            (distilled, labelled),
        )
        total += found.loss.item()
    assert total == pytest.approx(situation.whole(settings)[0].loss.item(), rel=1e-5)


def test_no_decisions_give_zero_and_no_nan():
    situation = Situation()
    none = torch.zeros(0, WIDTH, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    found = chunked_loss(none, situation.head, [situation.weight], labels, None, Settings(alpha=0.0))
    states, weight = torch.autograd.grad(found.loss, [none, situation.weight])
    assert found.loss.item() == 0
    assert states.shape == none.shape
    assert not weight.any()


def test_padded_vocabulary_is_cut():
    situation, settings = Situation(), Settings(alpha=0.0)
    wide = torch.cat([situation.weight.detach(), torch.full((14, WIDTH), 100.0)])
    found = chunked_loss(situation.states, lambda s: s @ wide.T, [], situation.labels, None, settings, classes=CLASSES)
    assert found.loss.item() == pytest.approx(situation.whole(settings)[0].loss.item(), rel=1e-6)


def test_scores_survive_packing():
    draw = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(4, 3, 151_936, generator=draw)
    true = torch.randint(0, 151_936, (4, 3), generator=draw)
    scores = read_scores(pack_scores(logits, true))
    exact = torch.log_softmax(logits.double(), -1)
    assert torch.equal(scores.choice, logits.argmax(-1))
    torch.testing.assert_close(
        scores.log_likelihood.double(), exact.gather(-1, true[..., None])[..., 0], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(scores.entropy.double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=1e-4)


def test_top_k_names_the_largest_and_the_mass_of_the_rest():
    draw = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(5, 151_936, generator=draw)
    known = read_top_k(pack_top_k(pack_scores(logits, torch.zeros(5, dtype=torch.int64)), logits, 64))
    exact = torch.log_softmax(logits.double(), -1)
    values, classes = exact.topk(64, -1)
    assert torch.equal(known.classes.sort(-1).values, classes.sort(-1).values)
    torch.testing.assert_close(known.log_p.double(), values, rtol=0, atol=2e-3)
    torch.testing.assert_close(known.log_tail.double(), (1 - values.exp().sum(-1)).log(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("classes", [64, 4096, 49_152, 49_153, 151_936])
@pytest.mark.parametrize("distinct", [3, 50, 10**6])
def test_largest_are_those_of_a_whole_search(classes, distinct):
    """Also where values are equal: then any of them, but as many."""
    draw = torch.Generator().manual_seed(classes + distinct)
    values = torch.randint(0, distinct, (2, 3, classes), generator=draw).float()
    found, positions = largest(values, 64)
    assert torch.equal(found, values.topk(64, -1).values)
    assert torch.equal(values.gather(-1, positions), found)
    assert all(len(set(row.tolist())) == 64 for row in positions.flatten(0, 1))
    assert torch.equal(first_largest(values), values.max(-1).indices)
    assert torch.equal(first_largest(values[..., :2]), values[..., :2].max(-1).indices)


def test_states_beyond_fp16_keep_their_size():
    states = torch.tensor([[1.0, -3.0e5, 2.0], [0.5, 0.25, -1.0]])
    scores = pack_scores(states, torch.zeros(2, dtype=torch.int64))
    found = read_hidden(pack_hidden(scores, states), 3)
    torch.testing.assert_close(found, states, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[1], states[1])  # those that fit are not divided
