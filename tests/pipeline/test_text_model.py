"""A text model as a user holds it: the chat template, the published sampler, guidance the right way round, gaps, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

import unmask
from unmask.checkpoints.store import CheckpointError
from unmask.cli.main import main
from unmask.grammars.answer_format import of_schema
from unmask.models.elastic import Elastic
from unmask.pipeline.text_model import Continue, FillGaps, Reply, TextModel
from unmask.recipe import override
from unmask.sampling.presets import llada_base, llada_instruct
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tasks.conversing import Message
from unmask.tokens.build import PROMPT
from unmask.tokens.text import MASK, TEXT_CONTROL

from ..tiny_llada import make

QUESTION = "why is the sky blue?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "llada")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    torch.set_num_threads(1)
    made = unmask.load(folder)
    assert isinstance(made, TextModel)
    return made


def test_the_chat_template_is_the_published_one(folder: Path, model: TextModel) -> None:
    rendered = (
        f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    whole = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered, add_special_tokens=False).ids
    sequence = Reply(question=f"  {QUESTION}\n", length=5).build(model.parts)
    prompt = sequence.span("prompt")
    assert sequence.ids[: prompt.stop].tolist() == whole and prompt.start == 0
    assert sequence.masked.tolist() == [False] * len(whole) + [True] * 5


CHAT = [
    Message(role="system", text=" be brief "),
    Message(role="user", text="the sky\n"),
    Message(role="assistant", text="is blue"),
    Message(role="user", text=QUESTION),
]


def test_a_conversation_has_the_published_template(folder: Path, model: TextModel) -> None:
    """Llama 3's: every message trimmed, between its header and an end of turn; the system's, too."""
    turns = [("system", "be brief"), ("user", "the sky"), ("assistant", "is blue"), ("user", QUESTION)]
    rendered = "<|startoftext|>"
    for role, words in turns:
        rendered += f"<|start_header_id|>{role}<|end_header_id|>\n\n{words}<|eot_id|>"
    rendered += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    whole = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered, add_special_tokens=False).ids
    reply = Reply(question=QUESTION, length=3, messages=tuple(CHAT[:-1]))
    assert reply.build(model.parts).ids[:-3].tolist() == whole


def test_a_conversation_is_remembered(model: TextModel) -> None:
    turn = model.converse(CHAT, seed=4, max_tokens=20, temperature=1.2)
    answer = model.ask(QUESTION, messages=CHAT[:-1], seed=4, max_tokens=20, temperature=1.2)
    assert (turn.text, turn.finish_reason, turn.seed) == (answer.text, answer.finish_reason, 4)
    assert turn.settings["words"] == answer.settings
    others = [model.converse(CHAT[n:], seed=4, max_tokens=20, temperature=1.2) for n in (1, 3)]
    assert len({turn.text, *(other.text for other in others)}) == 3  # the system and the earlier turns are read
    more = model.converse([*CHAT, turn.message(), Message(role="user", text="why?")], max_tokens=4)
    assert not more.images and json.dumps(more.to_json())
    form = of_schema({"type": "integer", "minimum": 1, "maximum": 9})
    assert model.ask(QUESTION, messages=CHAT[:-1], form=form).value in range(1, 10)


def test_what_is_no_conversation_of_texts_is_refused(model: TextModel) -> None:
    picture = Message(role="user", text="what?", images=(Image.new("RGB", (8, 8)),))
    long = [Message(role="user", text="why is the sky blue? " * 9)] * 9
    for messages, said in (
        ([], "must have the role user"),
        (CHAT[:3], "must have the role user"),
        ([Message(role="tool", text="x"), *CHAT], "message 1 has the role 'tool'; use system or user or assistant"),
        ([*CHAT, Message(role="user", text=" ")], "message 5 has no text"),
        ([picture, *CHAT], "message 1 has pictures, and this is a text model; leave them out"),
        ([*CHAT, picture], "message 5 has pictures"),
        (long, "no room for an answer in the model's context of 256; .*leave out the oldest messages"),
    ):
        with pytest.raises(ValueError, match=said):
            model.converse(messages)
    with pytest.raises(ValueError, match="message 1 has the role 'tool'"):
        model.ask("why?", messages=[Message(role="tool", text="x")])


def test_what_a_user_writes_is_no_control_token(model: TextModel) -> None:
    control = [model.parts.text[name] for name in TEXT_CONTROL]
    plain = Continue(prompt="".join(TEXT_CONTROL), length=1).build(model.parts)
    assert not set(plain.ids[:-1].tolist()) & set(control)


# -- the published sampler, written out as in spec 4.1 ------------------------------------------------------------------


def logits(net: Elastic, ids: list[int]) -> Tensor:
    span = Span(name="text", kind=Kind.TEXT, start=0, stop=len(ids))
    row = Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=(span,))
    batch = collate([row], [0])
    with torch.no_grad():
        return net(batch, predict=batch.valid).logits(Kind.TEXT).double()


def released(net: Elastic, prompt: list[int], length: int, block: int, steps: int, scale: float) -> list[int]:
    """Low-confidence remasking in blocks; ``steps`` a block, which divide it. Guidance as in the paper: away from no prompt."""
    mask, x = net.mask_id, prompt + [net.mask_id] * length
    for start in range(len(prompt), len(x), block):
        for _ in range(steps):
            found = logits(net, x)
            if scale:
                nothing = logits(net, [mask] * len(prompt) + x[len(prompt) :])
                found = (1 + scale) * found - scale * nothing
            best = found.argmax(1)
            sure = found.softmax(1).gather(1, best[:, None])[:, 0]
            open_ = [i for i in range(start, start + block) if x[i] == mask]
            for i in sorted(open_, key=lambda i: -float(sure[i]))[: block // steps]:
                x[i] = int(best[i])
    return x[len(prompt) :]


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize(("block", "steps"), [(16, 16), (8, 8), (8, 2)])
def test_the_sampler_is_the_published_one(model: TextModel, block: int, steps: int, scale: float) -> None:
    net, sequence = model.parts.net, Reply(question=QUESTION, length=16).build(model.parts)
    prompt = sequence.ids[: sequence.span("prompt").stop].tolist()
    preset = llada_instruct(null_id=net.mask_id, drop=PROMPT, end=(), block=block, scale=scale)
    sampler = override(preset, [f"schedule.steps={steps}"])
    (found,) = model.run([sequence], [0], sampler).rows
    assert found.ids[len(prompt) :].tolist() == released(net, prompt, 16, block, steps, scale)


def test_guidance_changes_the_answer_and_reaches_it_by_a_setting(model: TextModel) -> None:
    answers = [model.ask(QUESTION, length=16, settings=[f"guidance.scale={s}"]) for s in (0, 3)]
    assert answers[0].text != answers[1].text and answers[1].settings["guidance"]["scale"] == 3.0
    assert answers[0].settings["schedule"]["steps"] == answers[0].settings["blocks"]["length"] == 16


def test_base_is_one_block_of_the_whole_answer(model: TextModel) -> None:
    sequence = Continue(prompt="the sky is", length=12).build(model.parts)
    prompt = sequence.ids[:-12].tolist()
    (found,) = model.run([sequence], [0], llada_base(null_id=model.parts.text[MASK], drop=PROMPT, length=12)).rows
    assert found.ids[-12:].tolist() == released(model.parts.net, prompt, 12, 12, 12, 0.0)
    assert model.complete("the sky is", length=12).text == model.parts.text.decode(found.ids[-12:].tolist())


def test_stopping_early_changes_nothing_before_the_end(model: TextModel) -> None:
    text, net = model.parts.text, model.parts.net
    whole = model.ask(QUESTION, length=24, sampler=llada_instruct(null_id=net.mask_id, drop=PROMPT, end=(), block=8))
    sequence = Reply(question=QUESTION, length=24).build(model.parts)
    unstopped = llada_instruct(null_id=net.mask_id, drop=PROMPT, end=(), block=8)
    full = model.run([sequence], [0], unstopped).rows[0].ids[-24:]
    end = int(full[9])  # declare something that was written in the second block an end of turn
    first = full.tolist().index(end)
    early = llada_instruct(null_id=net.mask_id, drop=PROMPT, end=(end,), block=8)
    steps: list[Batch] = []
    (stopped,) = model.run([sequence], [0], early, steps.append).rows
    assert stopped.ids[-24:].tolist()[: first + 1] == full.tolist()[: first + 1]
    assert len(steps) < 24 and whole.text == text.decode_begun(full.tolist())


def test_an_answer_has_no_company(model: TextModel) -> None:
    sampler = llada_instruct(null_id=model.parts.text[MASK], drop=PROMPT, end=(), block=4)
    rows = [Reply(question=q, length=n).build(model.parts) for q, n in ((QUESTION, 8), ("is it?", 12), ("the", 4))]
    together = model.run(rows, [0, 1, 2], sampler).rows
    for i, row in enumerate(rows):
        assert torch.equal(model.run([row], [i], sampler).rows[0].ids, together[i].ids)


def test_a_trace_has_every_step(model: TextModel) -> None:
    answer = model.complete("the sky is", length=6, trace=True)
    assert [film.count("_") for film in answer.trace] == [5, 4, 3, 2, 1, 0]


def test_gaps_are_filled_and_the_rest_stays(model: TextModel) -> None:
    sequence = FillGaps(target="the [mask] is [mask][mask]").build(model.parts)
    assert [len(s) for s in sequence.spans if s.name == "answer"] == [1, 1, 1]
    (found,) = model.run([sequence], [0], llada_base(null_id=model.parts.text[MASK], drop=PROMPT, length=3)).rows
    given = ~sequence.masked
    assert torch.equal(found.ids[given], sequence.ids[given]) and (found.ids != sequence.ids).any()
    assert model.parts.text.decode(sequence.ids[given].tolist()) == "the is"  # no space is left before a gap
    assert model.infill_text("the [mask] is blue").text.startswith("the")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_bad_requests_are_refused_with_a_hint(model: TextModel) -> None:
    for wrong, said in (
        (lambda: model.ask("  "), "the text is empty; "),
        (lambda: model.complete(""), "the text is empty; "),
        (lambda: model.ask("why?", max_tokens=0), "max_tokens must be at least 1"),
        (lambda: model.ask("why " * 300), "the model's context of 256; shorten"),
        (lambda: model.infill_text("the sky"), r"no \[mask\]"),
        (lambda: model.ask("why?", settings=["guidance.scal=3"]), "did you mean 'scale'"),
        (lambda: model.generate("a red apple"), "text model, which cannot generate; "),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    with pytest.raises(AttributeError):
        _ = model.nonsense


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"vocab_size": 200, "embedding_size": 200, "mask_token_id": 5},
            r"the tokenizer has \d+ ids and the model 200",
        ),
        ({"mask_token_id": 5}, r"<\|mdm_mask\|> is \d+ in the tokenizer and 5"),
        ({"n_layers": 4}, "missing transformer.blocks.3"),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path: Path, change: dict[str, int], said: str) -> None:
    place = make(tmp_path / "llada")
    raw = json.loads((place / "config.json").read_text())
    if "vocab_size" in change:
        for file in place.glob("*.safetensors"):
            save_file({k: v[:200].clone() if len(v) == 320 else v for k, v in load_file(file).items()}, file)
    (place / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(CheckpointError, match=said):
        unmask.load(place)


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_commands_answer_and_fill(folder: Path, model: TextModel, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", QUESTION, "--length", "8", "--model", str(folder)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == model.ask(QUESTION, length=8).text and told["settings"]["blocks"]["length"] == 8
    assert main([*words, "--plain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == model.complete(QUESTION, length=8).text
    assert main(["infill", "the [mask] is blue", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == model.infill_text("the [mask] is blue").text


def test_the_commands_cut_sample_and_stop(folder: Path, model: TextModel, capsys: pytest.CaptureFixture[str]) -> None:
    whole = model.ask(QUESTION, temperature=0.9, top_p=0.8, seed=2, length=16)
    stop = whole.text[3:5]
    words = [
        "ask",
        QUESTION,
        "--model",
        str(folder),
        "--length",
        "16",
        "--seed",
        "2",
        "--temperature",
        "0.9",
        "--top-p",
        "0.8",
    ]
    for more, text, reason in (
        ([], whole.text, whole.finish_reason),
        (
            ["--max-tokens", "3"],
            model.ask(QUESTION, temperature=0.9, top_p=0.8, seed=2, length=16, max_tokens=3).text,
            "length",
        ),
        (["--stop", "never", "--stop", stop], whole.text.partition(stop)[0], "stop"),
    ):
        assert main([*words, *more, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["text"], told["finish_reason"]) == (text, reason)
        assert told["settings"]["token_sampler"]["top_p"] == 0.8
    for wrong in ("0", "1.5", "x"):
        assert main([*words[:4], "--top-p", wrong]) == 2
        assert "--top-p" in capsys.readouterr().err


def test_a_chat_with_a_text_model_remembers(
    folder: Path, model: TextModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", _Lines(["the sky", QUESTION, "/new", QUESTION]))
    assert main(["chat", "--model", str(folder), "--max-tokens", "8", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first = model.converse([Message(role="user", text="the sky")], max_tokens=8)
    said = [Message(role="user", text="the sky"), first.message(), Message(role="user", text=QUESTION)]
    wanted = [first, model.converse(said, max_tokens=8, seed=1), model.ask(QUESTION, max_tokens=8)]
    assert ["".join(turn["parts"]) for turn in told] == [one.text for one in wanted]


class _Lines(list[str]):
    """Standard input that is not a terminal."""

    def isatty(self) -> bool:
        return False


def test_the_commands_refuse_what_a_text_model_cannot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("in.png")
    place = str(folder)
    for words, said in (
        (["generate", "a red apple", "--model", place], "cannot generate"),
        (["ask", "in.png", "what?", "--model", place], "cannot read pictures"),
        (["ask", "in.png", "--model", place], "the question is missing"),
        (["ask", "--model", place], "QUESTION"),
        (["ask", "what is this?"], "the picture is missing"),
        (["evaluate", place], "is a text model"),
    ):
        assert main(words) == 2, words
        out, err = capsys.readouterr()
        assert said in err and len(err.splitlines()) == 2 and not out, err


def test_token_ids_are_continued_as_their_text(model: TextModel) -> None:
    said = model.complete("why is the sky", max_tokens=8, seed=1)
    ids = tuple(model.parts.text.encode("why is the sky"))
    assert model.complete(ids, max_tokens=8, seed=1).text == said.text and said.question == "why is the sky"
    for wrong, words in (
        ((), "no tokens"),
        ((-1,), "-1 is not in the vocabulary"),
        ((10**6,), "not in the vocabulary"),
    ):
        with pytest.raises(ValueError, match=words):
            model.complete(wrong)


def test_a_text_is_written_between_a_prompt_and_a_suffix(model: TextModel) -> None:
    whole = Continue(prompt="why is", length=6, suffix=" blue?").build(model.parts)
    given, masked, after = (whole.ids[s.start : s.stop].tolist() for s in whole.spans)
    assert (given, after) == (model.parts.text.encode("why is"), model.parts.text.encode(" blue?"))
    assert len(masked) == 6 and [s.writable for s in whole.spans] == [False, True, False]
    one, other = (model.complete("why is", suffix=s, max_tokens=6, seed=2) for s in (" blue?", " the sky the sky"))
    assert one.text != other.text and one.finish_reason == "length"
    given = sum(len(model.parts.text.encode(words)) for words in ("why is", " blue?"))
    room = model.parts.context - given
    assert room < 300
    fitting = model.complete("why is", suffix=" blue?", max_tokens=room, steps=4)
    assert model.complete("why is", suffix=" blue?", max_tokens=10**20, steps=4).text == fitting.text
    with pytest.raises(ValueError, match="more than the model's context"):
        model.complete("why is", suffix=" blue?" * 200, max_tokens=300)
