"""Language models taught from all logits, from hidden states and from the largest logits: the same trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file
from taught import curve, fill_here
from tiny import capitals_job, llama
from unreadable import UNREADABLE, EvaluationReached, TransformersReads, compute_on_it

from raykd.checks.kept import say_kept
from raykd.cluster.resources import Resources
from raykd.common.errors import ConfigError, StoreError
from raykd.common.units import shown_size
from raykd.config.load import build, override
from raykd.config.methods import Method
from raykd.distillation.packed import pack_hidden, pack_scores, pack_top_k, read_scores
from raykd.experiment import scoring
from raykd.experiment.disagreement import Disagreement, disagreement
from raykd.experiment.disagreement import measure_disagreement as share_of
from raykd.experiment.divergence import compared, read
from raykd.experiment.head_repair import restore_heads
from raykd.experiment.scoring import parts_of, score_teachers, stored_logits
from raykd.experiment.work import Work
from raykd.logits import LogitStore, TeacherLogits
from raykd.logits.command import run_logits as verify
from raykd.logits.heads import HEAD, head_on, read_head
from raykd.logits.keep import HIDDEN, SCORES, Keep
from raykd.models import kept_logits
from raykd.models.ensemble_divergence import measure
from raykd.models.inputs import input_columns
from raykd.models.language import LanguageHead, States
from raykd.plan.prepare import prepare
from raykd.plan.trainings import served_teacher, student_jobs, teacher_jobs
from raykd.search.space import Space
from raykd.teachers import blocks
from raykd.teachers.blocks import TeacherWork, cuts, missing_blocks
from raykd.teachers.serving import TeacherModel
from raykd.training.loop import train

CLASSES = 260
FORMS = {"all": "all", "hidden": "hidden", "top_k": {"top_k": CLASSES}, "few": {"top_k": 8}}


class Taught:
    """Two teachers of different widths, trained once, and their logits in each form."""

    def __init__(self, folder):
        self.tree = capitals_job(folder, baseline=False)
        self.tree["teachers"][1]["model"] = self.tree["teachers"][1]["model"] | {"config": llama(hidden_size=48)}
        self.tree = override(self.tree, {"data.train": "train[:20]", "method.temperature": 1})
        config = build(self.tree)
        prepared = prepare(config)
        self.models = []
        for jobs in teacher_jobs(config, prepared).values():
            list(train(jobs[0]))
            self.models.append([jobs[0].result()["model"]])
        self.filled: dict[str, tuple] = {}

    def of(self, form, **method):
        changes = {"logits.keep": FORMS[form]} | {f"method.{k}": v for k, v in method.items()}
        if form in ("top_k", "few"):
            changes["method.pool"] = "probabilities"
        config = build(override(self.tree, changes))
        prepared = prepare(config)
        served = [
            served_teacher(config, prepared, t, m, "float32") for t, m in zip(config.teachers, self.models, strict=True)
        ]
        if form not in self.filled:
            for teacher, one in zip(config.teachers, served, strict=True):
                fill_here(config, prepared, teacher, one)
            self.filled[form] = ()
        return config, prepared, served

    def trained(self, form, **method):
        config, prepared, served = self.of(form, **method)
        job = student_jobs(config, prepared, config.method, served)[0]
        points = curve(train(job))
        return points, load_file(job.folder / "generation-1" / "model" / "model.safetensors"), job.result()


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return Taught(tmp_path_factory.mktemp("capitals"))


METHODS = {
    "kd": {"temperature": 3.0, "alpha": 0.7},
    "weighted": {"type": "weighted", "W": 0.3, "temperature": 2.0},
    "likelihood by row": {"weighting": "likelihood", "correct_by": "example", "weight_temperature": 0.5},
    "reverse": {"divergence": "reverse_kl", "temperature": 1.5, "pool": "probabilities"},
    "skip": {"type": "weighted", "all_wrong": "skip"},
}


@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_train_as_all_logits(taught, method):
    exact, weights, result = taught.trained("all", **METHODS[method])
    found, others, own = taught.trained("hidden", **METHODS[method])
    assert any(point[2] > 0 for point in exact)
    np.testing.assert_allclose(found, exact, rtol=2e-3, atol=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-3)
    for name, value in result["generations"][0]["test"].items():
        assert own["generations"][0]["test"][name] == pytest.approx(value, rel=5e-3, abs=1e-3), name


def test_the_largest_logits_of_a_whole_vocabulary_train_as_all_of_them(taught):
    method = {"alpha": 0.7, "pool": "probabilities"}
    exact, weights, _ = taught.trained("all", **method)
    found, others, _ = taught.trained("top_k", **method)
    np.testing.assert_allclose([p[1] for p in found], [p[1] for p in exact], rtol=2e-3)  # the term of the labels
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-3)


def test_a_teacher_of_its_own_last_generation_keeps_hidden_states_too(taught):
    points, _, result = taught.trained("hidden", type="born_again", generations=2)
    exact, *_ = taught.trained("all", type="born_again", generations=2)
    assert len(result["generations"]) == 2
    np.testing.assert_allclose(points, exact, rtol=5e-3, atol=1e-3)


def test_every_form_says_the_same_of_teachers_and_ensemble(taught):
    found = {}
    for form in ("all", "hidden", "top_k"):
        config, prepared, served = taught.of(form)
        found[form] = score_teachers(prepared, served, LogitStore.of(config))
        shares = disagreement(config, prepared, served)
        assert 0 <= shares.all_wrong <= min(1 - right for right in shares.right)
    for place, exact in enumerate(found["all"]):
        for name, value in exact["test"].metrics.items():
            assert found["hidden"][place]["test"].metrics[name] == pytest.approx(value, rel=2e-3), (place, name)
            if place < 2:  # its ensemble is the mean of probabilities, not of logits
                assert found["top_k"][place]["test"].metrics[name] == pytest.approx(value, rel=2e-3), (place, name)


@pytest.mark.parametrize("form", ["all", "hidden"])
def test_scores_do_not_depend_on_how_many_rows_are_held(taught, monkeypatch, form):
    """Rows of long texts are large, so that fewer of them are held."""
    config, prepared, served = taught.of(form)
    store = LogitStore.of(config)
    stored = stored_logits(prepared, served, "test", store)
    largest = 2 * stored.shapes.astype(int).max(0).prod() * 2  # two teachers, fp16

    def read() -> tuple[list[int], list[dict[str, float]], Disagreement]:
        scores = [one["test"].metrics for one in score_teachers(prepared, served, store)]
        return [len(part) for part in parts_of(stored)], scores, share_of(prepared, served, store, "decision")

    at_once, scores, shares = read()
    assert at_once == [len(stored)]
    monkeypatch.setattr(scoring, "_BYTES_AT_ONCE", 3 * largest)
    few_at_once, same_scores, same_shares = read()
    assert sum(few_at_once) == len(stored)
    assert 3 <= max(few_at_once) < len(stored)
    assert same_shares == shares
    for same, whole in zip(same_scores, scores, strict=True):
        assert same == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("method", ["kd", "weighted", "likelihood by row"])
@pytest.mark.parametrize("form", ["hidden", "few"])
def test_nothing_reads_from_its_device(taught, form, method, monkeypatch):
    """As in test_every_task.py, for what is packed: steps and teachers."""
    only = {"temperature": 1.0} if form == "few" else {}
    config, prepared, served = taught.of(form, **METHODS[method] | only)
    job = replace(student_jobs(config, prepared, config.method, served)[0], seed=9)
    rows = input_columns(prepared.teachers["b"].splits["train"].open(), prepared.task)[np.arange(4)]
    expected = [row.shape for row in TeacherModel(served[1]).answer(rows, np.full(4, -1))]
    compute_on_it(monkeypatch)
    with TransformersReads():
        found = TeacherModel(served[1]).answer(rows, np.full(4, -1))
        with pytest.raises(EvaluationReached):
            list(train(job, UNREADABLE))
    assert [row.shape for row in found] == expected


def test_the_likelihood_of_an_ensemble_of_few_logits_is_exact(taught):
    config, prepared, served = taught.of("all")
    stored = stored_logits(prepared, served, "test", LogitStore.of(config))
    gold = [torch.tensor(row["labels"]) for row in prepared.student.splits["test"].open()]
    mixed = [torch.softmax(torch.from_numpy(stored[[at]][:, 0]).double(), -1).mean(0) for at in range(len(gold))]
    exact = -torch.cat([p[range(len(own)), own].log() for p, own in zip(mixed, gold, strict=True)]).mean().item()
    config, prepared, served = taught.of("few")
    *_, ensemble = score_teachers(prepared, served, LogitStore.of(config))
    assert ensemble["test"].metrics["nll"] == pytest.approx(exact, rel=1e-3)


def test_the_largest_logits_have_the_defaults_that_they_serve(tmp_path):
    tree = override(capitals_job(tmp_path), {"logits.keep": {"top_k": 8}})
    for method in ("kd", {"type": "weighted", "alpha": 0.3}, None):
        found = build({**tree, "method": method} if method else tree).method
        assert (found.temperature, found.pool) == (1.0, "probabilities")
    assert build({**tree, "method": "finetune"}).method == Method(type="finetune")
    space = Space(build(override(tree, {"search.space": {"method.type": ["kd", "weighted", "annealing"]}})))
    for arm in space.arms:
        method = space.config_of(arm, next(space.settings(arm)), 0).method
        assert not method.distils or (method.temperature, method.pool) == (1.0, "probabilities"), arm.name


def test_the_divergence_from_the_ensemble_is_that_of_the_whole_logits(taught):
    """Against float64, with the student's logits as transformers computes them from the plain rows."""
    found, (config, prepared, served) = {}, taught.of("all")
    (job,) = student_jobs(config, prepared, config.method, served)
    if not job.done:
        list(train(job))
    for form in ("all", "hidden", "top_k"):
        config, prepared, served = taught.of(form)
        found[form] = measure(
            compared(
                config.task, read(prepared, served, LogitStore.of(config)), served[0].keep, job, Resources(1, 1, 0)
            )
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(job.result()["model"])
    config, prepared, served = taught.of("all")
    for split in ("validation", "test"):
        stored = stored_logits(prepared, served, split, LogitStore.of(config))
        of_logits, of_probabilities = [], []
        for at, row in enumerate(prepared.student.splits[split].open()):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, row["positions"], :CLASSES]
            log_q = torch.log_softmax(logits.double(), -1)
            said = torch.from_numpy(stored[[at]][:, 0]).double()  # (2, H, C)
            for log_p, kept in (
                (torch.log_softmax(said.mean(0), -1), of_logits),
                (torch.softmax(said, -1).mean(0).log(), of_probabilities),
            ):
                kept.append((log_p.exp() * (log_p - log_q)).sum(-1))
        assert found["all"][split] == pytest.approx(torch.cat(of_logits).mean().item(), rel=1e-3)
        assert found["hidden"][split] == pytest.approx(found["all"][split], rel=1e-2)
        assert found["top_k"][split] == pytest.approx(torch.cat(of_probabilities).mean().item(), rel=1e-2)
        assert found["all"][split] > 1e-3


def test_an_ensemble_is_compared_in_fp32_whatever_the_model_runs_in(taught, monkeypatch):
    """The teachers' heads and their mean would lose half of their digits in the model's bf16."""
    config, prepared, served = taught.of("hidden")
    job, under = student_jobs(config, prepared, config.method, served)[0], []
    if not job.done:
        list(train(job))
    of = kept_logits.divergence_from_ensemble

    def watched(*given):
        under.append(torch.is_autocast_enabled("cpu"))
        return of(*given)

    monkeypatch.setattr(kept_logits, "divergence_from_ensemble", watched)
    given = read(prepared, served, LogitStore.of(config)), served[0].keep, job, Resources(1, 1, 0)
    found = {
        precision: measure(replace(compared(config.task, *given), precision=precision))["test"]
        for precision in ("fp32", "bf16")
    }
    assert found["bf16"] != found["fp32"], "the model itself ran in bf16"
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.1)
    assert under
    assert not any(under)


def test_bytes_of_a_decision(taught):
    widths = {
        "all": [CLASSES] * 2,
        "hidden": [HIDDEN.numbers(CLASSES, 32), HIDDEN.numbers(CLASSES, 48)],
        "few": [Keep("top_k", 8).numbers(CLASSES, 32)] * 2,
    }
    for form, expected in widths.items():
        config, prepared, served = taught.of(form)
        stored = stored_logits(prepared, served, "train", LogitStore.of(config))
        rows = prepared.student.splits["train"].open()
        for m, width in enumerate(expected):
            assert stored.view(m, 3).shape == (rows[3]["decisions"], width), form
    batch = stored_logits(*(taught.of("hidden")[1:]), "train", LogitStore.of(config))[[0, 3]]
    assert batch.shape[-1] == HIDDEN.numbers(CLASSES, 48)
    assert not batch[0, :, :, HIDDEN.numbers(CLASSES, 32) :].any()
    scores = read_scores(torch.from_numpy(batch))
    assert (scores.log_likelihood <= 0).all()


def test_a_damaged_head_is_found_and_written_again(taught, capsys):
    config, prepared, served = taught.of("hidden")
    store = LogitStore.of(config)
    path = TeacherLogits(store, served[0].key).files.path / HEAD
    whole, head = path.read_bytes(), read_head(store, served[0].key)
    assert head.weight.shape[1] == 32
    work = Work(config, prepared, Console(), None, 0.0)
    head_on.cache_clear()
    path.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(StoreError, match=HEAD):
        read_head(store, served[0].key)
    restore_heads(work, served)
    assert read_head(store, served[0].key).weight.equal(head.weight)  # the file's metadata are in no fixed order
    path.write_bytes(whole[:-8] + bytes(8))
    assert verify("verify", str(store), [], Console()) == 1
    assert HEAD in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(StoreError, match=HEAD):
        read_head(store, served[0].key)
    restore_heads(work, served)
    assert read_head(store, served[0].key).weight.equal(head.weight)  # the file's metadata are in no fixed order
    assert verify("verify", str(store), [], Console()) == 0


FEW = {"logits.keep": {"top_k": 8}, "method.pool": "probabilities"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (FEW | {"method.temperature": 2}, "method.temperature"),
        (FEW | {"method.pool": "logits"}, "method.pool"),
        (FEW | {"method.divergence": "jsd"}, "method.divergence"),
        (FEW | {"search.space": {"method.temperature": [1, 2]}}, "search.space.method.temperature"),
        ({"teachers.b.folds": 2}, "logits.keep"),
        ({"task.type": "text-classification", "logits.keep": "hidden"}, "logits.keep"),
    ],
)
def test_a_method_that_needs_more_than_is_kept_is_refused(tmp_path, changes, key):
    tree = override(capitals_job(tmp_path), {"method.temperature": 1})
    with pytest.raises(ConfigError) as refused:
        build(override(tree, changes))
    assert refused.value.key == key


def test_keep_knows_how_wide_each_form_is():
    logits, states = torch.randn(2, CLASSES), torch.randn(2, 32)
    scores = pack_scores(logits, torch.tensor([0, 1]))
    packed = {SCORES: scores, HIDDEN: pack_hidden(scores, states), Keep("top_k", 8): pack_top_k(scores, logits, 8)}
    for keep, rows in packed.items():
        assert rows.shape == (2, keep.numbers(CLASSES, 32)), keep
    assert Keep().numbers(CLASSES, 32) == CLASSES


def test_check_says_what_the_store_will_weigh(taught):
    said = []
    config, prepared, served = taught.of("hidden")
    say_kept(config, prepared, said.append)
    tokens = sum(sum(e.open()["decisions"]) for e in prepared.teachers["b"].splits.values())
    assert f" {tokens:,} tokens, {shown_size(2 * HIDDEN.numbers(CLASSES, 48) * tokens)} " in said[1]
    blocks = TeacherLogits(LogitStore.of(config), served[1].key).blocks.values()
    assert sum(block.values.nbytes for block in blocks) == 2 * HIDDEN.numbers(CLASSES, 48) * tokens


def test_a_form_that_a_model_cannot_give_is_refused_before_anything_starts(tmp_path):
    tree = override(capitals_job(tmp_path), {"method.temperature": 1})
    many = {"logits.keep": {"top_k": CLASSES + 1}, "method.pool": "probabilities"}
    with pytest.raises(ConfigError) as refused:
        prepare(build(override(tree, many)))
    assert (refused.value.key, refused.value.value) == ("logits.keep.top_k", CLASSES + 1)
    electra = {"model_type": "electra", "is_decoder": True, "vocab_size": 264, "max_position_embeddings": 64}
    sizes = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tree["student"]["model"] | {"config": electra | sizes | {"intermediate_size": 32}}
    tree["teachers"][0]["model"] = model  # its head is two modules
    with pytest.raises(ConfigError) as refused:
        prepare(build(tree))
    assert refused.value.key == "logits.keep"
    assert "teachers.a.model" in str(refused.value)


def test_teachers_with_equal_heads_hold_one(taught):
    config, _, served = taught.of("hidden")
    store = LogitStore.of(config)
    first, second = (served[m].key for m in range(2))
    path = TeacherLogits(store, second).files.path / HEAD
    own = path.read_bytes()
    try:
        path.write_bytes((TeacherLogits(store, first).files.path / HEAD).read_bytes())
        head_on.cache_clear()
        assert head_on(store, second, "cpu") is head_on(store, first, "cpu")
        path.write_bytes(own)
        head_on.cache_clear()
        assert head_on(store, second, "cpu").weight.shape != head_on(store, first, "cpu").weight.shape
    finally:
        path.write_bytes(own)
        head_on.cache_clear()


def test_blocks_are_cut_by_rows_and_by_size():
    assert cuts(np.zeros(7), 3) == [3, 6]
    assert cuts(np.zeros(0), 3) == []
    assert cuts(np.array([0.5, 0.5, 0.25, 0.25, 0.5, 0.1]), 10) == [2, 5]
    assert cuts(np.array([0.2, 3.0, 0.2, 0.2]), 10) == [1, 2], "a row that is too large is alone"
    assert cuts(np.full(6, 0.1), 4) == [4]


def test_a_language_models_blocks_are_limited_by_their_tokens(taught, tmp_path, monkeypatch):
    config, prepared, served = taught.of("hidden")
    splits = {n: (s, prepared.teachers[served[0].name].splits[n]) for n, s in prepared.splits.items()}
    work, nothing = (
        TeacherWork(config.teachers[0], served[0], splits),
        TeacherLogits(LogitStore.at(tmp_path), served[0].key),
    )
    (whole, *others) = missing_blocks(work, nothing, 1000)
    rows = splits["train"][1].open()
    lengths = np.array(rows["length"])
    assert len(whole.positions) == len(rows)
    assert len(others) == len(splits) - 1
    limit = int(lengths.sum()) // 3
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", limit)
    cut = [block for block in missing_blocks(work, nothing, 1000) if block.folders == whole.folders]
    assert np.concatenate([block.positions for block in cut]).tolist() == whole.positions.tolist()
    assert len(cut) in (3, 4)
    assert all(lengths[block.positions].sum() <= limit for block in cut)


@pytest.mark.parametrize("at_once", [1, 3 * CLASSES, 10**6])
def test_decisions_are_packed_a_few_at_a_time_without_a_change(monkeypatch, at_once):
    """To the last bit the same as all decisions at once, which is what the store has held so far."""
    monkeypatch.setattr(kept_logits, "_IN_CACHE", at_once)
    torch.manual_seed(0)
    states, exists = torch.randn(2, 7, 32), torch.rand(2, 7) < 0.7
    true, layer = torch.randint(0, CLASSES, (2, 7)), torch.nn.Linear(32, CLASSES, bias=False)
    head = LanguageHead(transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama(vocab_size=CLASSES))))
    head.module = layer
    with torch.inference_mode():
        logits, gold = layer(states[exists]), true[exists]
        scores = pack_scores(logits, gold)
        expected = {HIDDEN: pack_hidden(scores, states[exists]), Keep("top_k", 8): pack_top_k(scores, logits, 8)}
        for keep, packed in (expected | {SCORES: scores}).items():
            found = kept_logits.pack_unchecked([States(states, head)], exists, true, CLASSES, keep)
            assert torch.equal(found, packed), keep
        none = kept_logits.pack_unchecked([States(states, head)], torch.zeros_like(exists), true, CLASSES, HIDDEN)
        assert none.shape == (0, HIDDEN.numbers(CLASSES, 32))
