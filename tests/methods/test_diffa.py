"""DIFFA: the shared fixture where it is, and a small twin in the released layout: opening, questions about sounds, training, verify."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.checkpoints.diffa import read_speech, speech_config, survey_diffa
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.verify import verify
from unmask.evaluation.verify_diffa import DIFFA_INPUTS, DiffaReference
from unmask.methods.diffa import STAGE_1, STAGE_2, AboutSounds, Hearing, HearingLoss, Stage
from unmask.pipeline.formats import Format, format_in
from unmask.pipeline.text_family import DIFFA
from unmask.pipeline.text_model import TextModel
from unmask.rng import generator
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.tasks.conversing import Message
from unmask.tasks.hearing import LEAD, MARK, SYSTEM, heard, spliced
from unmask.tokens.sound import SoundError, log_mel, mel_bands, read_sound, resampled

from .. import tiny_diffa, tiny_llada

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffa.make(tmp_path_factory.mktemp("diffa") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    opened = unmask.load(folder, device="cpu")
    assert isinstance(opened, TextModel)
    return opened


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffa.tone(tmp_path_factory.mktemp("sound") / "question.wav")


def fixture_folder(golden: Path) -> Path:
    """The measured arrays, which are too large for the repository: the folder in UNMASK_DIFFA, or diffa_tiny in or beside ``--golden``,
    or in the folder shared beside the repository.
    """
    beside = [parent / "shared" / "golden" for parent in Path(__file__).parents[2:5]]
    places = [place / "diffa_tiny" for place in (golden, golden.resolve().parent, *beside)]
    named = [Path(os.environ["UNMASK_DIFFA"])] if "UNMASK_DIFFA" in os.environ else []
    return next((place for place in named + places if place.exists()), places[0])


def test_every_measured_array_of_the_fixture_is_reproduced(request: pytest.FixtureRequest) -> None:
    shared = fixture_folder(Path(request.config.getoption("--golden")))
    if not shared.exists():
        pytest.skip("the folder of measured arrays is not here; UNMASK_DIFFA names it")
    found = verify(shared, device="cpu")
    assert {one.name for one in found} | DIFFA_INPUTS == set(load_file(shared / "expected.safetensors"))
    assert [one.name for one in found if not one.ok] == []


def measured(folder: Path) -> None:
    """Write expected.safetensors of the twin: inputs, and what the code gives today."""
    rng, config = generator("diffa twin"), tiny_diffa.READER
    net, _ = load_everything(survey_diffa(folder))
    prompts = torch.tensor([[12], [13]])
    mask = torch.rand(2, 18, generator=rng) < 0.5
    arrays = {
        "audio.mel": torch.randn(2, config.mels, config.frames, generator=rng),
        "audio.mask": (torch.arange(config.frames) < torch.tensor([[61], [44]])).long(),
        "qa.ids": torch.randint(200, (1, 14), generator=rng),
        "qa.audio_at": torch.tensor(5),
        "train.ids": torch.randint(200, (2, 18), generator=rng),
        "train.prompt_lengths": prompts,
        "train.mask": mask & (torch.arange(18) >= prompts),
        "train.t": torch.full((2, 18), 0.6),
    }
    made = DiffaReference(arrays=arrays, speech=read_speech(folder)).reproduce(net)
    save_file({name: one.contiguous() for name, one in (arrays | made).items()}, folder / "expected.safetensors")


def test_a_folder_in_the_released_layout_is_verified(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    measured(copy)
    assert all(one.ok for one in verify(copy, device="cpu"))
    weights = load_file(copy / "model.safetensors")
    weights["acoustic_connector.layer_weights"][0, 0] += 1
    save_file(weights, copy / "model.safetensors")
    wrong = {one.name for one in verify(copy, device="cpu") if not one.ok}
    assert {"audio.acoustic", "audio.stage2", "qa.logits", "train.loss_stage2"} <= wrong
    assert not wrong & {"audio.stage1", "audio.semantic", "train.loss_stage1"}


def test_the_layout_is_told_by_its_config_and_sizes_come_from_the_headers(folder: Path) -> None:
    assert format_in(folder) is Format.DIFFA and speech_config(folder) == tiny_diffa.READER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whisper_config": None}, "whisper_config"),
        ({"prompt_size": 32}, "prompt_size"),
        ({"whisper_config": {**tiny_diffa.CONFIG["whisper_config"], "d_model": 24}}, "do not fit the model"),  # type: ignore[dict-item]
        ({"whisper_config": {**tiny_diffa.CONFIG["whisper_config"], "encoder_layers": 4}}, "encoder_layers 4"),  # type: ignore[dict-item]
        ({"whisper_config": {**tiny_diffa.CONFIG["whisper_config"], "encoder_layers": 1024}}, "encoder_layers 1024"),  # type: ignore[dict-item]
    ],
)
def test_a_config_that_does_not_fit_is_named(
    tmp_path: Path, folder: Path, change: dict[str, object], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps({**tiny_diffa.CONFIG, **change}))
    with pytest.raises(CheckpointError, match=message):
        survey_diffa(copy)


def test_missing_parts_are_named(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "trainable_prompts.weight"}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="not those of DIFFA: trainable_prompts.weight is missing"):
        unmask.load(copy, device="cpu")
    shutil.rmtree(copy / "llm")
    with pytest.raises(CheckpointError, match="put the files of LLaDA-8B-Instruct into its folder llm"):
        unmask.load(copy, device="cpu")


def test_a_question_about_a_sound_depends_on_the_sound(model: TextModel, question: Path, tmp_path: Path) -> None:
    other = tiny_diffa.tone(tmp_path / "other.wav", 1900.0)
    asked = {"max_tokens": 8, "length": 8}
    answers = [model.ask("What is it?", audio=sound, **asked).text for sound in (question, str(question), other)]  # type: ignore[arg-type]
    assert answers[0] == answers[1] != answers[2]
    assert model.ask("What is it?", audio=read_sound(question), **asked).text == answers[0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"samples \[N\] at 16000 Hz, got the shape \(2, 3\)"):
        model.ask("What is it?", audio=torch.zeros(2, 3))


def test_the_prompt_is_the_published_one_with_the_sound_before_the_last_token_of_its_lead(model: TextModel) -> None:
    text, features = model.parts.text, torch.ones(4, 32)
    row = DIFFA.template.about_sound(model.parts.builder(), [Message(role="user", text="why?")], 3, features)
    said = row.ids[
        (torch.arange(len(row.ids)) < row.span("sound").start) | (torch.arange(len(row.ids)) >= row.span("sound").stop)
    ]
    shown = text.tokenizer.decode(said[:-3].tolist(), skip_special_tokens=False)
    names = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")}
    wanted = f"<|startoftext|>{names['system']}{SYSTEM}<|eot_id|>{names['user']}{LEAD}{MARK}why?<|eot_id|>{names['assistant']}"
    assert shown == wanted and row.request == "why?"
    before = text.tokenizer.decode(row.ids[: row.span("sound").start].tolist(), skip_special_tokens=False)
    assert before == wanted[: wanted.index(LEAD) + len(LEAD.rstrip())] and len(row.span("sound")) == 4


def test_sounds_at_the_command_line(
    folder: Path, question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ask", "What is it?", "--audio", str(question), "--model", str(folder)]
    assert main([*asked, "--max-tokens", "4", "--length", "4", "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["question"] == "What is it?" and isinstance(said["text"], str)
    text = tiny_llada.make(tmp_path / "text")
    for words, message in (
        ([*asked, "--plain"], "--plain cannot be combined with --audio"),
        (["ask", "what?", "--audio", str(question), "--model", str(text)], "hears no sound\nhint: leave out --audio"),
        (["ask", "what?", "--audio", str(tmp_path / "none.wav"), "--model", str(folder)], "none.wav does not exist"),
    ):
        assert main(words) == 2 and message in capsys.readouterr().err


# -- sounds --------------------------------------------------------------------------------------------------------------


def test_wav_files_of_every_width_are_the_same_sound(tmp_path: Path) -> None:
    import wave

    values = torch.tensor([0.5, -0.5, 0.25, -1.0])
    for width in (1, 2, 3, 4):
        half = 1 << (8 * width - 1)
        whole = [int(v * half) + (half if width == 1 else 0) for v in values]
        data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole for _ in range(2))
        with wave.open(str(tmp_path / f"{width}.wav"), "wb") as file:
            file.setnchannels(2), file.setsampwidth(width), file.setframerate(16000)
            file.writeframes(data)
        torch.testing.assert_close(read_sound(tmp_path / f"{width}.wav"), values, atol=1e-2, rtol=0)


def test_a_tone_keeps_its_pitch_at_another_rate_and_lies_in_its_band() -> None:
    at = torch.arange(4410) / 44100
    tone = torch.sin(2 * torch.pi * 1000 * at)
    made = resampled(tone, 44100)
    torch.testing.assert_close(
        made[200:-200], torch.sin(2 * torch.pi * 1000 * torch.arange(1600) / 16000)[200:-200], atol=0.02, rtol=0
    )
    mel, frames = log_mel(made, mels=40, frames=30)
    loudest = int(mel[:, 3].argmax())
    assert frames == 10 and int(mel_bands(40)[:, 25].argmax()) == loudest  # bin 25 is 1000 Hz
    assert mel.shape == (40, 30) and float(mel[:, 15:].max()) == float(mel.min())
    assert log_mel(torch.zeros(99999), mels=4, frames=30)[1] == 30


def test_files_that_are_not_sounds_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF0000WAVEfmt ")
    with pytest.raises(SoundError, match="is not a WAV file that can be read"):
        read_sound(tmp_path / "a.wav")
    with pytest.raises(SoundError, match="does not exist"):
        read_sound(tmp_path / "b.wav")
    with pytest.raises(SoundError, match="has no samples"):
        read_sound(tiny_diffa.tone(tmp_path / "c.wav", seconds=0.0))


# -- splicing and training -----------------------------------------------------------------------------------------------


def row(ids: list[int], answer: int) -> Sequence:
    stop = len(ids) - answer
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=stop),
        Span(name="answer", kind=Kind.TEXT, start=stop, stop=len(ids), writable=True),
    )
    return Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=spans)


def test_a_sound_is_spliced_at_its_place() -> None:
    made = spliced(row([1, 2, 3, 4, 5], 2), 1, torch.ones(2, 3))
    assert made.ids.tolist() == [1, 0, 0, 2, 3, 4, 5]
    assert [(s.name, s.start, s.stop) for s in made.spans] == [
        ("prompt", 0, 1), ("sound", 1, 3), ("prompt", 3, 5), ("answer", 5, 7),
    ]  # fmt: skip
    assert [(s.name, s.start) for s in spliced(row([1, 2, 3], 1), 0, torch.ones(1, 3)).spans] == [
        ("sound", 0), ("prompt", 1), ("answer", 3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="pixels or a sound already"):
        spliced(made, 0, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"in 0..3, got 9"):
        spliced(row([1, 2, 3], 1), 9, torch.ones(1, 3))


def test_a_sound_is_spliced_beside_the_features_of_a_picture() -> None:
    look = Span(name="look", kind=Kind.FEATURE, start=0, stop=2)
    words = row([1, 2, 3, 4], 2)
    seen = Sequence(
        ids=torch.tensor([0, 0, 1, 2, 3, 4]),
        masked=torch.zeros(6, dtype=torch.bool),
        spans=(look, *(replace(s, start=s.start + 2, stop=s.stop + 2) for s in words.spans)),
        features=torch.tensor([[1.0], [2.0]]),
    )
    made = spliced(seen, 3, torch.tensor([[7.0], [8.0], [9.0]]))
    batch = collate([made, made], range(2))
    assert batch.features is not None and made.features is not None and made.feature_rows == 5
    read = batch.features[batch.feature][..., 0].masked_fill(batch.kind != Kind.FEATURE, 0.0)
    assert read.tolist() == [[1, 2, 0, 7, 8, 9, 0, 0, 0]] * 2


def sounds(count: int = 2) -> AboutSounds:
    rng, config = generator("sounds"), tiny_diffa.READER
    rows = tuple(row(torch.randint(200, (12,), generator=rng).tolist(), 5) for _ in range(count))
    mel = torch.randn(count, config.mels, config.frames, generator=rng)
    return AboutSounds(rows=rows, at=(3, 2, 4)[:count], mel=mel, frames=torch.tensor([60, 25, 40])[:count])


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2])
def test_a_stage_trains_its_adapters_and_nothing_else(folder: Path, stage: Stage) -> None:
    net, _ = load_everything(survey_diffa(folder))
    hearing = Hearing(net, tiny_diffa.reader(), stage)
    before = {name: value.clone() for name, value in hearing.named_parameters()}
    loss = HearingLoss()(hearing, sounds(), generator("loss"))
    loss.total.backward()
    torch.optim.SGD([p for p in hearing.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name.split(".")[1] for name, value in hearing.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(stage.trained)


def test_a_shorter_sound_is_not_padded_and_its_row_does_not_depend_on_the_others(folder: Path) -> None:
    net, _ = load_everything(survey_diffa(folder))
    hearing, some = Hearing(net, tiny_diffa.reader(), STAGE_2), sounds()
    batch = hearing.batch(some)
    rows = [len(s) for table in batch.span_table for s in table if s.name == "sound"]
    assert rows == [3 + 30 // 4, 3 + 13 // 4] and batch.features is not None
    alone = hearing.batch(AboutSounds(rows=some.rows[1:], at=some.at[1:], mel=some.mel[1:], frames=some.frames[1:]))
    assert alone.features is not None
    torch.testing.assert_close(batch.features[rows[0] :], alone.features)


def test_a_sound_has_as_many_tokens_as_its_length_gives(model: TextModel) -> None:
    assert model.parts.speech is not None
    short, long = (heard(model.parts.speech, torch.zeros(n * 160)) for n in (16, 64))
    assert (len(short), len(long)) == (3 + 8 // 4, 3 + 32 // 4)
    assert len(heard(model.parts.speech, torch.zeros(10**6))) == 3 + 40 // 4
