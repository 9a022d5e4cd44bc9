"""The loss in closed form against float64, in which it is written by its definition and differentiated by autograd."""

from itertools import product

import pytest
import torch

from raykd.distillation.chunked import Settings, Taught, chunked_loss
from raykd.distillation.gradients import bucket_divergence
from raykd.distillation.linear_head import LinearHead
from raykd.distillation.packed import TopK
from raykd.distillation.taught import Hidden

D, WIDTH, CLASSES, TEACHERS, K = 23, 6, 40, 3, 7

OF_LOGITS = [
    (form, Settings(alpha, temperature, epsilon=epsilon, divergence=divergence, beta=0.3, pool=pool))
    for form, alpha, temperature, epsilon, divergence, pool in product(
        ("logits", "hidden"),
        (0.6, 1.0),
        (1.0, 2.5),
        (0.0, 0.1),
        ("forward_kl", "reverse_kl", "jsd"),
        ("logits", "probabilities"),
    )
]
OF_TOP_K = [
    ("top_k", Settings(alpha, epsilon=eps, pool="probabilities")) for alpha, eps in product((0.6, 1.0), (0, 0.1))
]
OF_NONE = [("hidden", Settings(0.0, epsilon=epsilon)) for epsilon in (0.0, 0.1)]
UNSCALED = [("logits", Settings(0.6, 2.5, scale_by_t2=False))]


class Problem:
    """A student with a head of a kind, teachers of three widths, decisions that lack a label or are not distilled."""

    def __init__(self, own="plain", teachers="plain"):
        draw = torch.Generator().manual_seed(11)
        self.kind = own
        self.states = torch.randn(D, WIDTH, generator=draw).requires_grad_()
        self.weight = torch.randn(CLASSES + 3, WIDTH, generator=draw).requires_grad_()
        self.bias = torch.randn(CLASSES + 3, generator=draw).requires_grad_()
        widths = (5, 5, 8) if teachers == "shared" else (4, 5, 8)
        self.taught_states = [torch.randn(D, width, generator=draw) for width in widths]
        self.heads = [
            LinearHead(
                torch.randn(CLASSES + 2, width, generator=draw),
                None if teachers == "plain" else torch.randn(CLASSES + 2, generator=draw),
                0.7 if teachers == "scaled" else 1.0,
                2.0 if teachers == "soft-capped" else None,
            )
            for width in widths
        ]
        if teachers == "shared":
            self.heads[1] = self.heads[0]
        self.labels = torch.randint(0, CLASSES, (D,), generator=draw)
        self.labels[::4] = -100
        self.distill = torch.rand(D, generator=draw) > 0.3
        weights = torch.rand(TEACHERS, D, generator=draw)
        self.weights = TEACHERS * weights / weights.sum(0)

    @property
    def parameters(self):
        return [self.weight, self.bias] if self.kind in ("bias", "any with bias") else [self.weight]

    def head(self):
        bias = self.bias if self.kind == "bias" else None
        if self.kind == "any with bias":
            return lambda states: states @ self.weight.T + self.bias
        return LinearHead(
            self.weight, bias, 0.7 if self.kind == "scaled" else 1.0, 2.0 if self.kind == "capped" else None
        )

    def teacher_logits(self, dtype=torch.float32):
        heads = [
            LinearHead(h.weight.to(dtype), None if h.bias is None else h.bias.to(dtype), h.scale, h.softcap)
            for h in self.heads
        ]
        return torch.stack([h(s.to(dtype))[:, :CLASSES] for h, s in zip(heads, self.taught_states, strict=True)])

    def taught(self, form):
        if form == "hidden":
            states = zip(self.heads, self.taught_states, strict=True)
            return Taught(self.weights, self.distill, hidden=[Hidden(h, s.__getitem__) for h, s in states])
        if form == "top_k":
            return Taught(
                self.weights, self.distill, top_k=[lambda part, k=k: TopK(k[0][part], k[1][part]) for k in self.known()]
            )
        return Taught(self.weights, self.distill, [each.__getitem__ for each in self.teacher_logits()])

    def known(self):
        return [torch.log_softmax(each, -1).topk(K, -1) for each in self.teacher_logits()]

    def found(self, form, settings, chunk):
        loss = chunked_loss(
            self.states,
            self.head(),
            self.parameters,
            self.labels,
            self.taught(form) if settings.alpha else None,
            settings,
            classes=CLASSES,
            chunk=chunk,
        )
        return loss, torch.autograd.grad(loss.loss, [self.states, *self.parameters])

    def exact(self, form, settings):
        """In float64, from the definitions in the documentation."""
        T, alpha, epsilon = settings.temperature, settings.alpha, settings.epsilon
        states, *parameters = (x.detach().double().requires_grad_() for x in (self.states, *self.parameters))
        z = (states @ parameters[0].T + (parameters[1] if len(parameters) > 1 else 0))[:, :CLASSES]
        z = 0.7 * z if self.kind == "scaled" else 2.0 * torch.tanh(z / 2.0) if self.kind == "capped" else z
        log_q1 = z - z.exp().sum(-1, keepdim=True).log()
        labelled = self.labels >= 0
        gold = torch.nn.functional.one_hot(self.labels.clamp(min=0), CLASSES)
        smooth = (1 - epsilon) * gold + epsilon / CLASSES
        label = -(smooth * log_q1).sum(-1)[labelled].mean()
        divergence = torch.zeros((), dtype=torch.float64)
        if alpha:
            apart = self.top_k_divergence(log_q1) if form == "top_k" else self.divergence(z / T, settings)
            divergence = apart[self.distill].mean()
        scale = T**2 if settings.scale_by_t2 else 1.0
        loss = alpha * scale * divergence + (1 - alpha) * label
        return (loss, divergence, label), torch.autograd.grad(loss, [states, *parameters])

    def divergence(self, softened, settings):
        q = softened.exp() / softened.exp().sum(-1, keepdim=True)
        share, logits = (
            self.weights.double()[..., None] / TEACHERS,
            self.teacher_logits(torch.float64) / settings.temperature,
        )
        if settings.pool == "logits":
            pooled = (share * logits).sum(0).exp()
            p = pooled / pooled.sum(-1, keepdim=True)
        else:
            p = (share * logits.exp() / logits.exp().sum(-1, keepdim=True)).sum(0)
        if settings.divergence == "forward_kl":
            return (p * (p / q).log()).sum(-1)
        if settings.divergence == "reverse_kl":
            return (q * (q / p).log()).sum(-1)
        m = settings.beta * p + (1 - settings.beta) * q
        return settings.beta * (p * (p / m).log()).sum(-1) + (1 - settings.beta) * (q * (q / m).log()).sum(-1)

    def top_k_divergence(self, log_q):
        total = 0.0
        for (log_p, classes), weight in zip(self.known(), self.weights.double(), strict=True):
            p, q = log_p.double().exp(), log_q.exp().gather(-1, classes)
            p_tail, q_tail = 1 - p.sum(-1), 1 - q.sum(-1)
            apart = (p * (p / q).log()).sum(-1) + p_tail * (p_tail / q_tail).log()
            total = total + weight / TEACHERS * apart
        return total


def check(problem, form, settings, chunk=None):
    (terms, gradients), (exact_terms, exact_gradients) = (
        problem.found(form, settings, chunk),
        problem.exact(form, settings),
    )
    for name, term, exact in zip(("loss", "distillation", "label"), terms, exact_terms, strict=True):
        assert term.item() == pytest.approx(exact.item(), rel=2e-5), name
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("form", "settings"), [*OF_LOGITS, *OF_TOP_K, *OF_NONE, *UNSCALED])
def test_every_term_and_gradient(form, settings):
    check(Problem(), form, settings, chunk=10)


@pytest.mark.parametrize("own", ["bias", "scaled", "capped", "any with bias"])
@pytest.mark.parametrize("form", ["hidden", "top_k"])
def test_every_head_of_a_student(own, form):
    check(Problem(own), form, Settings(0.6, pool="probabilities"), chunk=10)


@pytest.mark.parametrize("teachers", ["bias", "scaled", "soft-capped", "shared"])
@pytest.mark.parametrize("pool", ["logits", "probabilities"])
def test_every_head_of_a_teacher(teachers, pool):
    check(Problem(teachers=teachers), "hidden", Settings(0.6, 2.0, pool=pool), chunk=10)


def test_a_head_that_is_not_trained_gets_no_gradient():
    problem = Problem("bias")
    problem.weight.requires_grad_(False)
    problem.bias.requires_grad_(False)
    loss = chunked_loss(
        problem.states,
        problem.head(),
        problem.parameters,
        problem.labels,
        problem.taught("hidden"),
        Settings(0.6),
        classes=CLASSES,
    )
    loss.loss.backward()
    assert problem.weight.grad is None
    torch.testing.assert_close(
        problem.states.grad.double(), Problem("bias").exact("hidden", Settings(0.6))[1][0], rtol=1e-4, atol=1e-6
    )


def test_the_gradient_of_a_multiple_is_a_multiple_and_taken_once():
    """As where the losses of several processes are averaged."""
    problem, settings = Problem(), Settings(0.6, pool="probabilities")
    _, expected = problem.found("hidden", settings, None)
    arguments = (problem.states, problem.head(), problem.parameters, problem.labels, problem.taught("hidden"), settings)
    tripled = 3 * chunked_loss(*arguments, classes=CLASSES).loss
    for found, gradient in zip(
        torch.autograd.grad(tripled, [problem.states, problem.weight], retain_graph=True), expected, strict=True
    ):
        torch.testing.assert_close(found, 3 * gradient)
    with pytest.raises(RuntimeError, match="not kept"):
        tripled.backward()


def test_a_student_with_all_its_mass_on_the_known_classes():
    """Its own rest is below what fp32 can tell from 0, so the gradient must not be divided by it."""
    problem = Problem()
    with torch.no_grad():
        problem.weight[:K] += 1.0
        problem.states.copy_(20 * problem.states.abs())
    known = TopK(torch.full((D, K), 0.9 / K).log(), torch.arange(K).expand(D, K))
    taught = Taught(
        torch.ones(1, D), problem.distill, top_k=[lambda part: TopK(known.log_p[part], known.classes[part])]
    )
    arguments = (problem.states, problem.head(), [problem.weight], problem.labels, taught, Settings(1.0))
    loss = chunked_loss(*arguments, classes=CLASSES).loss
    found = torch.autograd.grad(loss, [problem.states, problem.weight])
    log_q = torch.log_softmax(problem.head()(problem.states)[:, :CLASSES], -1)
    by_autograd = bucket_divergence(known, log_q)[problem.distill].mean()
    assert (log_q[:, :K].exp().sum(-1) > 1 - 1e-7).any()
    assert loss.item() == pytest.approx(by_autograd.item(), rel=1e-5)
    for mine, exact in zip(found, torch.autograd.grad(by_autograd, [problem.states, problem.weight]), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-5)


def test_an_unlikely_class_of_probability_0_adds_nothing():
    """exp(-300) is 0 in fp32, and 0 log 0 is 0."""
    states, weight = torch.zeros(1, 1, requires_grad=True), torch.zeros(3, 1)
    taught = Taught(
        torch.ones(1, 1), torch.ones(1, dtype=torch.bool), [lambda part: torch.tensor([[0.0, 0.0, -300.0]])]
    )
    for pool in ("logits", "probabilities"):
        loss = chunked_loss(
            states, LinearHead(weight), [], torch.tensor([-100]), taught, Settings(1.0, pool=pool), classes=3
        )
        assert loss.loss.item() == pytest.approx(torch.tensor(1.5).log().item(), rel=1e-6)  # log 3 - log 2
