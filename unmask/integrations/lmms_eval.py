"""The model type ``unmask`` of lmms-eval, for models that read pictures.

Public idea: ``python -m lmms_eval --model unmask --model_args pretrained=mini --tasks NAME``; lmms-eval finds this file through the
package's entry points. An answer is that of ``Model.ask`` with the same seed. Tasks that compare likelihoods are refused: ``Model`` has no
likelihood of an answer to a picture.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from unmask.checkpoints.device import AUTO
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.stream import DTYPES
from unmask.integrations import missing
from unmask.pipeline.model import Model
from unmask.pipeline.opening import load

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise missing("lmms_eval", "lmms-eval") from error

_IMAGE = "<image>"  # stands in the text of some tasks where the picture belongs


def manifest() -> ModelManifest:
    """What the entry point ``lmms_eval.models`` names."""
    return ModelManifest(model_id="unmask", simple_class_path=f"{__name__}.UnmaskLMM")


class UnmaskLMM(lmms):
    """``pretrained``: mini, a folder, or owner/name on the hub · ``seed``: of every answer · ``length``: masked tokens that are decoded at
    a time, ``steps``: of the sampler, ``scale``: text guidance (None: the model's own) · ``device``, ``dtype``, ``lora``, ``download``: as
    of ``unmask.load`` · ``batch_size``: 1, questions are answered one after the other. ValueError for a model that reads no pictures.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        seed: int = 0,
        length: int | None = None,
        steps: int | None = None,
        scale: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
        lora: str = "",
        download: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
        if str(batch_size or 1) != "1" or (max_batch_size or 1) != 1:
            raise ValueError(f"the batch size is {batch_size}; use 1, questions are answered one after the other")
        storage = WeightStorage(dtype=DTYPES[dtype]) if dtype else None
        opened = load(pretrained, device=device or AUTO, storage=storage, lora=lora or (), download=download)
        if not isinstance(opened, Model):
            raise ValueError(f"{pretrained} is a text model; use one that reads pictures, or lm-eval")
        self.model, self.seed = opened, seed
        self.options: dict[str, Any] = {"length": length, "steps": steps, "guidance_scale": scale}

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to the question of every request."""
        answers = []
        for request in tqdm(requests, desc="answers"):
            question, options, pictures_of, number, task, split = request.args
            answers.append(self._answer(question, options, pictures_of(self.task_dict[task][split][number])))
            self.cache_hook.add_partial("generate_until", (question, options), answers[-1])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise ValueError("this model type has no likelihoods; use tasks of the type generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise ValueError("this model type answers single questions; use tasks of the type generate_until")

    def _answer(self, question: str, options: dict[str, Any], pictures: list[Image.Image] | None) -> str:
        given = list(pictures or ())
        if len(given) > 1 or any(not isinstance(one, Image.Image) for one in given):
            raise ValueError(f"a question has {len(given)} pictures or videos; use tasks with one picture a question")
        until = options.get("until") or ()
        samples = options.get("do_sample", bool(options.get("temperature")))
        return self.model.ask(
            given[0] if given else None,
            question.replace(_IMAGE, "").strip(),
            seed=self.seed,
            max_tokens=options.get("max_new_tokens") or options.get("max_gen_toks"),
            stop=(until,) if isinstance(until, str) else tuple(word for word in until if word),
            temperature=float(options["temperature"]) if samples and options.get("temperature") else None,
            **self.options,
        ).text
