"""The model type of lm-eval, with the real package on local tasks. Run by ``make test-integrations``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.evaluation.likelihood import choose, likelihood
from unmask.pipeline.opening import load_text
from unmask.pipeline.text_model import Continue

from ..pages import run
from ..tiny_llada import make

lm_eval: Any = pytest.importorskip("lm_eval")
plugin: Any = pytest.importorskip("unmask.integrations.lm_eval", exc_type=ImportError)

CHOICES = """task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXTS = """task: tiny_texts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = ["why is the sky", "the user is", "is the assistant the sky"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("llada") / "model")


@pytest.fixture(scope="module")
def tasks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose right answers are the model's own, so that every score must be 1."""
    here, model = tmp_path_factory.mktemp("tasks"), load_text(folder, device="cpu")
    rows = []
    for question in QUESTIONS:
        answers = [" blue", " the sky is blue", " user"]
        best, _ = choose(model, question, answers, samples=4)
        answer = model.complete(question, length=8, stop=["\n"]).text
        rows.append({"question": question, "choices": [a.strip() for a in answers], "label": best, "answer": answer})
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choices", CHOICES), ("texts", TEXTS)):
        (here / f"{name}.yaml").write_text(text.replace("FILE", str(here / "rows.jsonl")))
    return here


def requests(*args: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, given, number) for number, given in enumerate(args)]


def test_the_harness_scores_the_models_own_answers(folder: Path, tasks: Path) -> None:
    found = lm_eval.simple_evaluate(
        model="unmask",
        model_args=f"pretrained={folder},samples=4,device=cpu",
        tasks=["tiny_choices", "tiny_texts"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=2,
        bootstrap_iters=0,
    )
    assert found["results"]["tiny_choices"]["acc,none"] == 1.0
    assert found["results"]["tiny_texts"]["exact_match,none"] == 1.0


def test_the_program_has_the_model_type(folder: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = ["--model", "unmask", "--model_args", f"pretrained={folder},samples=2", "--tasks", "tiny_texts"]
    more = ["--include_path", str(tasks), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    done = run([sys.executable, "-m", "unmask.integrations.lm_eval", *arguments, *more], tmp_path)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["tiny_texts"]["exact_match,none"] == 1.0


def test_likelihoods_are_those_of_the_package(folder: Path) -> None:
    lm, model = (
        plugin.UnmaskLM(str(folder), samples=4, seed=3, batch_size="2", device="cpu"),
        load_text(folder, device="cpu"),
    )
    pairs = [("the sky is", " blue"), ("the sky ", "is"), ("why", " is the sky blue")]
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    same = [likelihood(model, context, answer, samples=4, seed=3).value for context, answer in pairs]
    assert [value for value, _ in found] == pytest.approx(same, rel=1e-6)
    guided = plugin.UnmaskLM(str(folder), samples=4, seed=3, scale=0.5, device="cpu")
    (one,) = guided.loglikelihood(requests(pairs[0]), disable_tqdm=True)
    assert one[0] == pytest.approx(likelihood(model, *pairs[0], samples=4, seed=3, scale=0.5).value, rel=1e-6)


def test_greedy_is_what_the_model_writes(folder: Path) -> None:
    """Of all continuations, the one that the base sampler writes at one token a step."""
    lm = plugin.UnmaskLM(str(folder), samples=1, device="cpu")
    parts = lm.model.parts
    given = parts.text.encode("the sky is")
    row = Continue(prompt=tuple(given), length=3).build(parts)
    (done,) = lm.model.run([row], [0], parts.family.base(parts.text, 3)).rows
    span = done.span("answer")
    written = done.ids[span.start : span.stop].tolist()
    assert lm._greedy(lm._scored(given, written))
    assert not lm._greedy(lm._scored(given, [*written[:2], (written[2] + 1) % 250]))


def test_texts_of_a_batch_are_those_of_single_calls(folder: Path) -> None:
    lm = plugin.UnmaskLM(str(folder), batch_size=4, device="cpu")
    asked = [(question, {"until": [" the"], "max_gen_toks": size}) for question in QUESTIONS for size in (6, 9)]
    found = lm.generate_until(requests(*asked), disable_tqdm=True)
    same = [lm.model.complete(q, length=o["max_gen_toks"], stop=[" the"]).text for q, o in asked]
    assert found == same and len(set(found)) > 1
    chat = plugin.UnmaskLM(str(folder), chat=True, steps=2, length=8, device="cpu")
    (said,) = chat.generate_until(
        requests(("why is the sky blue?", {"until": "\n", "max_gen_toks": 5})), disable_tqdm=True
    )
    assert said == lm.model.ask("why is the sky blue?", steps=2, length=8, max_tokens=5, stop=["\n"]).text


def test_sampling_only_where_the_task_asks_for_it(folder: Path) -> None:
    lm = plugin.UnmaskLM(str(folder), device="cpu")
    cold, warm, off = (
        lm._wanted(0, "a", {"max_gen_toks": 4, **more}).temperature
        for more in ({}, {"temperature": 0.7}, {"temperature": 0.7, "do_sample": False})
    )
    assert (cold, warm, off) == (0.0, 0.7, 0.0)


def test_texts_without_a_prompt_and_long_ones(folder: Path) -> None:
    lm = plugin.UnmaskLM(str(folder), samples=2, device="cpu")
    (value, _), (other, _) = lm.loglikelihood(requests(("", "the sky"), ("", "the sky is blue")), disable_tqdm=True)
    assert other < value < 0
    context = lm.model.parts.context
    (rolled,) = lm.loglikelihood_rolling(requests(("sky " * context,)), disable_tqdm=True)
    assert rolled < 0
    long = [("sky " * context, {"max_gen_toks": 4})]
    assert len(lm.generate_until(requests(*long), disable_tqdm=True)) == 1
    with pytest.raises(ValueError, match="leave no room for a prompt"):
        lm.generate_until(requests(("sky", {"max_gen_toks": context})), disable_tqdm=True)


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="mini is not a text model"):
        plugin.UnmaskLM("mini", device="cpu")
    with pytest.raises(ValueError, match="dtype 'int3' is not supported"):
        plugin.UnmaskLM(str(folder), dtype="int3")
    with pytest.raises(ValueError, match="use chat=true"):
        plugin.UnmaskLM(str(folder), device="cpu").apply_chat_template([])
