"""Dream as a user holds it: ChatML, the published sampler, its orders, gaps, and never MASK in a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.pipeline.catalogue import find_sampler
from unmask.pipeline.text_gaps import FillGaps
from unmask.pipeline.text_model import Continue, Reply, TextModel
from unmask.sampling.reverse_time import OnGrid
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed, ReverseTime
from unmask.sequence import collate
from unmask.tasks.conversing import Message
from unmask.tokens.text import EOT, MASK

from ..tiny_dream import ADDED, make, tokenizer

QUESTION = "why is the sky blue?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "dream")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    torch.set_num_threads(1)
    made = unmask.load(folder)
    assert isinstance(made, TextModel)
    return made


def rendered(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False).ids


def test_the_tokenizer_of_three_files_is_that_of_one(folder: Path, model: TextModel) -> None:
    words = "It's 12 o'clock,\n\n  the sky isn't blue…\r\n(é) 天空 <|mask|>"
    whole = tokenizer()
    whole.encode_special_tokens = True
    assert model.parts.text.encode(words) == whole.encode(words, add_special_tokens=False).ids
    assert model.parts.text.tokenizer.decode(model.parts.text.encode(words)) == words


def test_user_text_has_no_control_tokens(model: TextModel) -> None:
    control = {tokenizer().token_to_id(name) for name in ADDED}
    assert not control & set(model.parts.text.encode("".join(ADDED)))


def test_the_chat_template_is_chatml_with_a_system_message(model: TextModel) -> None:
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    sequence = Reply(question=QUESTION, length=5).build(model.parts)
    assert sequence.ids[:-5].tolist() == rendered(prompt)
    assert sequence.masked.tolist() == [False] * len(rendered(prompt)) + [True] * 5


def test_a_conversation_keeps_its_own_system_message_and_white_space(model: TextModel) -> None:
    said = (
        Message(role="system", text=" be brief "),
        Message(role="user", text="a\n"),
        Message(role="assistant", text="b"),
    )
    prompt = (
        "<|im_start|>system\n be brief <|im_end|>\n<|im_start|>user\na\n<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    sequence = Reply(question=QUESTION, length=2, messages=said).build(model.parts)
    assert sequence.ids[:-2].tolist() == rendered(prompt)


def test_plain_text_begins_with_the_tokenizers_bos(model: TextModel) -> None:
    assert Continue(prompt="the sky", length=1).build(model.parts).ids[:-1].tolist() == rendered(
        "<|beginoftext|>the sky"
    )
    gaps = FillGaps(target="[mask] sky").build(model.parts)
    assert gaps.masked.tolist()[:2] == [False, True]  # the first position predicts the gap


def test_the_published_sampler(model: TextModel) -> None:
    settings = model.ask(QUESTION, length=8).settings
    assert settings["schedule"]["steps"] == 8
    drawn = settings["token_sampler"]["token_sampler"]
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (0.2, 0.95, 50)
    assert model.parts.family.length == 512


def greedy(model: TextModel, sampler: Sampler) -> list[int]:
    batch = collate([Reply(question=QUESTION, length=12).build(model.parts)], [0])
    return sampler.sample(model.parts.net, batch).ids[0, -12:].tolist()


@pytest.mark.parametrize("steps", [5, 12, 30])
def test_leaving_out_empty_steps_changes_nothing(model: TextModel, steps: int) -> None:
    preset = model.parts.family.fill(model.parts.text, 12)
    drawn = replace(preset.token_sampler, token_sampler=replace(preset.token_sampler.token_sampler, temperature=0.0))  # type: ignore[attr-defined]
    ours = replace(preset, token_sampler=drawn, schedule=ReverseTime(steps=steps))
    grid = replace(ours, schedule=Fixed(each=2**31), selection=OnGrid(steps=steps))
    assert greedy(model, ours) == greedy(model, grid)
    assert sum(ReverseTime(steps=steps).counts(12)) == 12 and len(ReverseTime(steps=steps).counts(12)) <= min(12, steps)


def test_mask_and_pictures_are_never_written(model: TextModel) -> None:
    net, text = model.parts.net, model.parts.text
    bias = torch.zeros(320)
    hook = net.text_head.register_forward_hook(lambda _, __, out: out + bias)  # type: ignore[attr-defined]
    wrong = [text[MASK], text.tokenizer.token_to_id("<|image_pad|>"), 300, 319]
    try:
        for i in wrong:
            bias.zero_()[i] = 1e4
            ids = greedy(model, model.parts.family.fill(text, 12))
            assert i not in ids
        bias.zero_()[text[EOT]] = 1e4
        assert greedy(model, model.parts.family.fill(text, 12)) == [text[EOT]] * 12
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["maskgit_plus", "topk_margin", "entropy", "origin", "fast_dllm"])
def test_every_order_answers_by_name(model: TextModel, name: str) -> None:
    change, _ = find_sampler(name, ["steps=4"] if name == "origin" else [])
    other = model.with_sampler(change)
    first, again = (other.ask(QUESTION, length=10, seed=2, temperature=0.7) for _ in range(2))
    assert first.text == again.text
    usual = model.ask(QUESTION, length=10, seed=2, temperature=0.7)
    assert (first.settings == usual.settings) is (name == "entropy")  # which is the published order


def test_alg_temp_is_the_noise_of_an_order(model: TextModel) -> None:
    change, _ = find_sampler("maskgit_plus", ["noise=0.5"])
    assert model.with_sampler(change).ask(QUESTION, length=6).settings["selection"]["noise"] == 0.5


def test_steps_reach_the_order_that_has_its_own(model: TextModel) -> None:
    change, _ = find_sampler("origin")
    assert model.with_sampler(change).ask(QUESTION, length=6, steps=3).settings["selection"]["steps"] == 3


def test_answers_are_batch_invariant(model: TextModel) -> None:
    preset = model.parts.family.chat(model.parts.text, 9)
    rows = [Reply(question=q, length=9).build(model.parts) for q in (QUESTION, "the", "the sky is blue, is it?")]
    for sampler in (preset, find_sampler("origin", ["steps=4"])[0](preset)):
        together = model.run(rows, [1, 2, 3], sampler)
        for row, seed, found in zip(rows, (1, 2, 3), together.rows, strict=True):
            assert torch.equal(model.run([row], [seed], sampler).rows[0].ids, found.ids)


def test_the_commands_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(folder), "--seed", "3"]
    assert main(["ask", QUESTION, "--length", "8", "--steps", "4", *common]) == 0
    assert main(["ask", "the sky is", "--plain", "--length", "8", "--sampler", "topk_margin", *common]) == 0
    assert main(["infill", "the [mask] is [mask]", *common]) == 0
    assert "the" in capsys.readouterr().out
