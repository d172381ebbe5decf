"""The model type of lmms-eval, with the real package on a local task. Run by ``make test-integrations``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.pipeline.model import Model

from ..pages import environment
from ..tiny_llada import make

QUESTIONS = ("what is it?", "what colour is the apple?")
TASK = """task: tiny_pictures
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/rows.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.visual
doc_to_text: !function pictures.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """def visual(row):
    return [row["image"].convert("RGB")]


def text(row, lmms_eval_specific_kwargs=None):
    return "<image>\\n" + row["question"]
"""
PROGRAM = """
import json, sys
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager

manager = TaskManager("WARNING", include_path=sys.argv[1], include_defaults=False)
found = evaluator.simple_evaluate(
    model="unmask", model_args="pretrained=mini,device=cpu", tasks=["tiny_pictures"], task_manager=manager,
    batch_size=1, bootstrap_iters=0,
)
score = found["results"]["tiny_pictures"]["exact_match,none"]
said = [sample["filtered_resps"][0] for sample in found["samples"]["tiny_pictures"]]
json.dump({"score": score, "said": said}, open(sys.argv[2], "w"))
"""


@pytest.mark.timeout(1000)  # importing the package takes a minute on a busy machine
def test_the_package_scores_the_models_own_answers(model: Model, tmp_path: Path) -> None:
    """Its evaluation loop, its registry (through our entry point) and its data sets. The right answers are the model's own."""
    pytest.importorskip("lmms_eval")
    datasets: Any = pytest.importorskip("datasets")
    import json
    import subprocess

    image = model.generate("a red apple", seed=7, plan=False, attempts=1, steps=8)[0].image
    answers = [model.ask(image, question, max_tokens=8, temperature=0.0).text for question in QUESTIONS]
    rows = {"image": [image] * len(QUESTIONS), "question": list(QUESTIONS), "answer": answers}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "tasks" / "pictures.py").write_text(FUNCTIONS)
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "tasks"), str(out)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text()) == {"score": 1.0, "said": answers}


class Request:
    """What the adapter reads of a request of the package."""

    def __init__(self, question: str, options: dict[str, Any], images: list[Any]) -> None:
        self.args = (question, options, lambda row: images, 0, "task", "test")


@pytest.fixture(scope="module")
def adapter() -> Any:
    pytest.importorskip("lmms_eval.api.model")
    module: Any = pytest.importorskip("unmask.integrations.lmms_eval", exc_type=ImportError)
    made = module.UnmaskLMM("mini", device="cpu", seed=3)
    made.task_dict = {"task": {"test": [{}]}}
    return made


def test_answers_are_those_of_the_model(adapter: Any, model: Model) -> None:
    white = Image.new("RGB", (96, 64), "white")
    options = {"max_new_tokens": 4, "until": ["\n"], "temperature": 0.7, "do_sample": True}
    (said,) = adapter.generate_until([Request("<image>\nwhat is it?", options, [white])])
    assert said == model.ask(white, "what is it?", seed=3, max_tokens=4, stop=["\n"], temperature=0.7).text
    with pytest.raises(ValueError, match="2 pictures or videos; use tasks with one picture"):
        adapter.generate_until([Request("what is it?", {}, [white, white])])
    for method in (adapter.loglikelihood, adapter.generate_until_multi_round):
        with pytest.raises(ValueError, match="use tasks of the type generate_until"):
            method([])


def test_mistakes(adapter: Any, tmp_path: Path) -> None:
    made = type(adapter)
    with pytest.raises(ValueError, match="is a text model; use one that reads pictures, or lm-eval"):
        made(str(make(tmp_path / "llada")), device="cpu")
    with pytest.raises(ValueError, match="dtype 'int3' is not supported; use one of"):
        made("mini", dtype="int3")
    with pytest.raises(ValueError, match="the batch size is 4; use 1"):
        made("mini", batch_size=4)
