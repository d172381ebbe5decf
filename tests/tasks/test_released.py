"""Every task on a folder in the released layout, as it was published: prompts, quirks, guidance, settings, and what is refused.

The folder is the fixture with a vocabulary large enough for the coordinates, one text token a byte, and a small vision tower.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import unmask
from unmask.checkpoints.lavida_o import names
from unmask.checkpoints.store import CheckpointError
from unmask.cli.main import main
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, ElasticConfig, VisionConfig
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model, describe
from unmask.sequence import Kind, Sequence, collate
from unmask.step import Progress
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate
from unmask.tasks.ground import Ground
from unmask.tasks.parts import to_image
from unmask.tasks.understand import Ask
from unmask.tokens.prompts import Conditions
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import CONTROL, EOT, HEADER, MASK, location

FIXTURE = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
VISION = VisionConfig(image=28, patch=4, width=16, layers=2, heads=2, mlp=24)  # 7 x 7 patches, pooled to 3 x 3
SQUARE = 51  # features of a square picture: 9 of the whole, 6 rows of 6 and a newline
LEVEL = "vision_tower.vision_tower.vision_model."


def write_tokenizer(folder: Path, control: tuple[str, ...] = CONTROL) -> int:
    """One token a byte and control tokens; how many in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size(with_added_tokens=True)


def configure(folder: Path, **changes: object) -> None:
    """Fields of config.json set, or taken away (None)."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def make_folder(place: Path, rename: Callable[[str], str] = str, dtype: torch.dtype = torch.float32) -> Path:
    shutil.copytree(FIXTURE, place)
    size = write_tokenizer(place)
    mask = Tokenizer.from_file(str(place / "tokenizer.json")).token_to_id(MASK)
    own = {"side": 128, "vision": asdict(VISION)}
    configure(place, vocab_size=size, embedding_size=size, mask_token_id=mask, mm_vision_tower="siglip", unmask=own)
    tensors = load_file(place / "model.safetensors")
    g = torch.Generator().manual_seed(0)
    for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
        tensors[name] = torch.randn(size, 64, generator=g) * tensors[name].std()
    config = replace(SIZES["tiny"], width=64, heads=4, vision=VISION)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Elastic(config, mask_id=0).state_dict().items() if k.startswith("vision.")}
    mapping = names(config)
    for ours, shape in shapes.items():
        tensors[f"model.{rename(mapping[ours])}"] = torch.randn(shape, generator=g) * 0.2
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, place / "model.safetensors")
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    torch.set_num_threads(1)
    return unmask.load(folder)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return to_image(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)))


# -- what is said (spec 2.1, 2.2, 2.4, 2.5) ---------------------------------------------------------------------------

HEAD = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able "
    "to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
MICRO = "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 0; LEFT : 0; SCORE : 7.110;"


def wire(sequence: Sequence, model: Model) -> str:
    out = ""
    for span in sequence.spans:
        ids = sequence.ids[span.start : span.stop].tolist()
        out += model.parts.text.show(ids) if span.kind == Kind.TEXT else f"[{span.name} {len(span)}]"
    assert {span.segment for span in sequence.spans} == {0}, "everything reads everything"
    return out


def test_drawing_is_asked_for_as_published(model: Model) -> None:
    end = f"<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>{ASSISTANT}"
    said = wire(Generate(prompt="a dog").build(model.parts), model)
    assert said == f"{HEAD}Generate an image with the caption:\n a dog {MICRO}{end}"
    own = Conditions(luminance=0.414, contrast=0.453, score=7.0, hps=3.221)
    said = wire(Generate(prompt="a dog", conditions=own).build(model.parts), model)
    micro = "LUMINANCE : 0.414; CONTRAST : 0.453; SCORE : 7.000; HPS : 3.221;"
    assert said == f"{HEAD}Generate an image with the caption:\n a dog {micro}{end}"


def test_what_is_asked_stands_beside_what_is_always_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Conditions] = []
    monkeypatch.setattr(Model, "generate", lambda model, prompt, **rest: told.append(rest["conditions"]) or [])
    words = ["generate", "a dog", "--model", str(folder), "--out", str(tmp_path / "dog.png")]
    assert main([*words, "--luminance", "0.25", "--score", "6", "--crop", "1", "2"]) == 0 == main(words)
    size = "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 1; LEFT : 2"
    assert told[0].text() == f"{size}; LUMINANCE : 0.250; SCORE : 6.000" and told[1] is None


def test_editing_is_asked_for_as_published(model: Model, picture: Image.Image) -> None:
    """The blank between the two pictures is the token that is dropped; there are no conditions."""
    parts = model.parts
    sequence = Edit(
        pixels=parts.preprocess(picture)[0], instruction="make it blue ", look=parts.image_views(picture)
    ).build(parts)
    said = f"{HEAD}[look {SQUARE}][source 64]\n make it blue<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>{ASSISTANT}"
    assert wire(sequence, model) == said
    assert int((sequence.ids == parts.text[EOT]).sum()) == 3  # system, user, assistant (spec 2.5)


def test_questions_are_asked_as_published(model: Model, picture: Image.Image) -> None:
    """The newline after the picture is the token that is dropped."""
    sequence = Ask(pixels=model.parts.image_views(picture), question="what is it?", length=3).build(model.parts)
    assert wire(sequence, model) == f"{HEAD}[look {SQUARE}] what is it?<|eot_id|>{ASSISTANT}{MASK * 3}"


def test_boxes_are_asked_for_as_published(model: Model, picture: Image.Image) -> None:
    """A stray apostrophe comes first, so nothing is dropped; no header trails."""
    sequence = Ground(pixels=model.parts.image_views(picture), phrases=("the cat",)).build(model.parts)
    words = "\n Please locate the cat in this image. Give bounding boxes in LOC format.<|eot_id|>"
    box = f"<LOC_BEGIN>{MASK * 4}<LOC_END><|eot_id|>"
    assert wire(sequence, model) == f"'{HEAD}[look {SQUARE}]{words}{ASSISTANT}{box}"
    with pytest.raises(ValueError, match="one phrase per sequence, got 2"):
        Ground(pixels=model.parts.image_views(picture), phrases=("a", "b")).build(model.parts)


def test_every_quirk_can_be_switched_off(model: Model, picture: Image.Image) -> None:
    parts = replace(model.parts, quirks=replace(NO_QUIRKS, one_segment=True))
    look, pixels = parts.image_views(picture), parts.preprocess(picture)[0]
    drawn = wire(Generate(prompt="a dog").build(parts), model)
    assert drawn == f"{HEAD}Generate an image with the caption:\n a dog<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>"
    edited = wire(Edit(pixels=pixels, instruction="go", look=look).build(parts), model)
    assert edited == f"{HEAD}[look {SQUARE}] [source 64]\n go<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>"
    assert f"[look {SQUARE}]\n what" in wire(Ask(pixels=look, question="what").build(parts), model)
    assert wire(Ground(pixels=look, phrases=("x",)).build(parts), model).startswith(HEAD)
    apart = replace(parts, quirks=NO_QUIRKS)
    assert {s.segment for s in Ground(pixels=look, phrases=("x", "y")).build(apart).spans} == {0, 1, 2}
    codes = torch.arange(64).reshape(1, 8, 8)
    rounded, cut = (torch.tensor(list(p.decode(codes)[0].tobytes())) for p in (parts, model.parts))
    assert set((rounded - cut).unique().tolist()) == {0, 1}


# -- published settings and null streams (spec 4.1, 4.2, 4.5, 4.7) ----------------------------------------------------


def test_published_settings(model: Model) -> None:
    made = {k: describe(f(model.parts)) for k, f in vars(model.presets).items() if k in ("generate", "edit", "ask")}
    for name in ("generate", "edit"):
        assert made[name]["schedule"] == {"part": "Shift", "steps": 64, "shift": 5.0}
        assert made[name]["token_sampler"] == {"part": "Categorical", "temperature": 0.8} | made[name]["token_sampler"]
        assert made[name]["selection"]["part"] == "InOrder"
    assert made["generate"]["guidance"]["scale"] == 4.0
    assert (made["edit"]["guidance"]["scale"], made["edit"]["guidance"]["image_scale"]) == (1.2, 1.4)
    assert (
        made["ask"]["blocks"] == {"part": "Blocks", "length": 128}
        and made["ask"]["token_sampler"]["temperature"] == 0.0
    )
    assert model.presets.answer == 128
    first = model.parts.text[location(0)]
    draw = describe(model.presets.ground(model.parts, 2))["token_sampler"]
    assert (draw["low"], draw["high"]) == (first, first + 1025)


def test_null_streams(model: Model, picture: Image.Image) -> None:
    """Without a condition all up to the user's end of turn is the null embedding, BOS included; the assistant header stays."""
    parts, text = model.parts, model.parts.text
    drawing = Generate(prompt="a dog").build(parts)
    edit = Edit(pixels=parts.preprocess(picture)[0], instruction="go", look=parts.image_views(picture)).build(parts)
    for sequence, sampler in ((drawing, model.presets.generate(parts)), (edit, model.presets.edit(parts))):
        batch = collate([sequence], [0])
        views = sampler.guidance.views(batch, Progress(number=torch.tensor([3]), of=torch.tensor([64]), length=1))
        header = sequence.span("assistant").start
        assert int(sequence.ids[header]) == text[HEADER] and int(sequence.ids[header - 1]) == text[EOT]
        gone = views[-1].ids[0] != batch.ids[0]
        null = views[-1]
        assert (null.ids[0, :header] == text[MASK]).all() and (null.kind[0, :header] == Kind.TEXT).all()
        assert not gone[header:].any() and null.ids[0, header:].equal(batch.ids[0, header:])
        if sequence is edit:
            kept = views[1].kind[0, :header] != Kind.TEXT
            span = edit.span("source")
            assert kept.nonzero().flatten().tolist() == list(range(span.start, span.stop))
            assert (views[1].ids[0, :header][~kept] == text[MASK]).all()


@torch.no_grad()
@pytest.mark.parametrize("task", ["edit", "ask", "ground"])
def test_what_sees_is_the_same_to_the_last_bit_loaded_in_part(
    task: str, folder: Path, model: Model, picture: Image.Image
) -> None:
    """Logits of every stream of the published guidance; tests/checkpoints/test_elastic.py has those of the fixture, which sees nothing."""
    parts, part = model.parts, unmask.load(folder, needs=needs_of(task)).parts
    assert any(p.is_meta for p in part.net.parameters()), "nothing was left out"
    request, sampler = {
        "edit": (Edit(pixels=parts.preprocess(picture)[0], instruction="go", look=parts.image_views(picture)), model.presets.edit(parts)),
        "ask": (Ask(pixels=parts.image_views(picture), question="what?", length=3), model.presets.ask(parts)),
        "ground": (Ground(pixels=parts.image_views(picture), phrases=("a cat",)), model.presets.ground(parts, 1)),
    }[task]  # fmt: skip
    sequence = request.build(parts)
    assert sequence.ids.equal(request.build(part).ids)
    batch = collate([sequence], [0])
    views = sampler.guidance.views(batch, Progress(number=torch.tensor([3]), of=torch.tensor([64]), length=1))
    assert len(views) == (3 if task == "edit" else 1)
    for view in views:
        got, wanted = part.net(view), parts.net(view)
        assert sum(len(scored.at) for scored in wanted.scored.values()) == int(view.masked.sum()) > 0
        assert all(got.logits(kind).equal(wanted.logits(kind)) for kind in wanted.scored)


# -- every task, from the command line --------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_every_command_runs(
    folder: Path,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture.resize((96, 64)).save("in.png")
    few = ("--model", folder, "-o", "schedule.steps=4")
    told = json.loads(run(capsys, "generate", "a dog", "--out", "a.png", "--json", *few))[0]
    assert told["settings"]["guidance"]["scale"] == 4.0 and Image.open("a.png").size == (128, 128)
    assert run(capsys, "edit", "in.png", "make it blue", "--out", "b.png", *few) == "b.png\n"
    assert (
        run(capsys, "infill", "in.png", "--box", "0,0,48,64", "--prompt", "a cat", "--out", "c.png", *few) == "c.png\n"
    )
    run(capsys, "infill", "a [mask] dog", "--model", folder)
    answer = json.loads(run(capsys, "ask", "in.png", "what is it?", "--max-tokens", "6", "--json", "--model", folder))
    assert answer["settings"]["schedule"]["steps"] == 128 and isinstance(answer["text"], str)
    lines = run(capsys, "ground", "in.png", "the cat", "a dog", "--model", folder).splitlines()
    assert [line.split("\t")[4] for line in lines] == ["the cat", "a dog"]
    assert all(0 <= float(v) <= 96 for line in lines for v in line.split("\t")[:4])


def test_an_answer_is_as_long_as_asked(model: Model, picture: Image.Image) -> None:
    assert len(model.ask(picture, "what?", max_tokens=5, trace=True).trace) <= 5
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        model.ask(picture, "what?", max_tokens=0)


def test_boxes_have_no_company(model: Model, picture: Image.Image) -> None:
    both = model.ground(picture, ["the cat", "a long red bus on the left"]).boxes
    assert model.ground(picture, ["the cat"]).boxes[0] == both[0]


def test_coordinates_alone_unless_wanted(folder: Path, picture: Image.Image) -> None:
    """Equal to the free choice where that is a coordinate; where it is not, a box cannot be read."""
    model = unmask.load(folder)
    free = ["token_sampler.low=0", f"token_sampler.high={model.parts.text.size}"]
    with pytest.raises(ValueError, match="a box is four bins"):
        model.ground(picture, ["the cat"], settings=free)
    first = model.parts.text[location(0)]
    with torch.no_grad():
        head = model.parts.net.text_head.weight
        head[:first], head[first + 1025 :] = 0, 0
    assert model.ground(picture, ["the cat"], settings=free).boxes == model.ground(picture, ["the cat"]).boxes


def test_a_wide_picture_is_seen_in_tiles(model: Model) -> None:
    wide = to_image(torch.rand(3, 28, 84, generator=torch.Generator().manual_seed(2)))
    sequence = Ask(pixels=model.parts.image_views(wide), question="what?").build(model.parts)
    assert len(sequence.span("look")) == 9 + 3 * 10
    assert sequence.pixels is not None and len(sequence.pixels) == 4
    left, right = wide.copy(), wide.copy()
    left.paste("red", (0, 0, 2, 2))
    assert not torch.equal(model.parts.image_views(left).views[1], model.parts.image_views(right).views[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_names_without_the_level_and_other_types(
    folder: Path, tmp_path: Path, picture: Image.Image, dtype: torch.dtype
) -> None:
    """Names of the tower as newer files have them; bfloat16 as the released files have it."""
    place = make_folder(tmp_path / "other", lambda name: name.replace(LEVEL, LEVEL.replace("vision_model.", "")), dtype)
    other, model = unmask.load(place), unmask.load(folder)
    assert other.parts.net.embed.weight.dtype == dtype and other.parts.vq.quant_conv.weight.dtype == torch.float32
    views = model.parts.image_views(picture).views
    with torch.no_grad():
        theirs, ours = other.parts.net.vision(views), model.parts.net.vision(views)
    torch.testing.assert_close(theirs.float(), ours, atol=0.0 if dtype == torch.float32 else 0.3, rtol=0)
    assert other.edit(picture, "go", settings=["schedule.steps=2"])[0].image.size == (128, 128)
    assert len(other.ground(picture, ["x"]).boxes) == 1


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(place: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        unmask.load(place)
    assert "; " in str(error.value)


def shorten(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def point_elsewhere(place: Path) -> None:
    names = dict.fromkeys(load_file(place / "model.safetensors"), "model-00002-of-00002.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def put(value: torch.Tensor) -> Callable[[Path], None]:
    """Another final norm."""

    def spoil(place: Path) -> None:
        tensors = load_file(place / "model.safetensors") | {"model.transformer.ln_f.weight": value}
        save_file(tensors, place / "model.safetensors")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "error: no model is called '"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}'), "has no field 'model'\nhint: is this"),
        (shorten, "model.safetensors is damaged, incomplete or not a safetensors file"),
        (point_elsewhere, "names 1 of 1 files that are missing"),
        (put(torch.ones(63)), "transformer.ln_f.weight is (63,), wanted (64,)"),
        (put(torch.ones(64, dtype=torch.long)), "transformer.ln_f.weight is stored as I64, wanted one of F64, F32, F16, BF16"),
        (put(torch.ones(64).index_fill(0, torch.tensor(7), torch.nan)), "transformer.ln_f.weight holds values that are not finite"),
        (lambda f: write_tokenizer(f, (*CONTROL, "<|one_more|>")), "ids and the model"),
        (lambda f: configure(f, gen_mlp_type="unitok"), "gen_mlp_type 'unitok' is not supported\nhint: wanted 'dit2'"),
        (lambda f: configure(f, n_layers="four"), "config.json: invalid value"),
        (lambda f: (f / "vqvae" / "config.json").write_text("{}"), "vqvae/config.json lacks layers_per_block"),
    ],
    ids=["no folder of a model", "another model", "half a file", "absent file", "shape", "dtype", "nan", "tokenizer", "gen_mlp_type",
         "no number", "no tokenizer of pictures"],
)  # fmt: skip
def test_what_is_wrong_is_two_lines_and_nothing_is_drawn(
    spoil: Callable[[Path], object], said: str, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(spoilt)
    assert main(["generate", "a dog", "--model", str(spoilt), "--out", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert said in err and not out and not (tmp_path / "a.png").exists()
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]


def test_too_little_memory_is_two_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unmask.checkpoints.budget.free_bytes", lambda device: 100_000)
    assert main(["generate", "a dog", "--model", str(folder), "--out", str(tmp_path / "a.png")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "GiB on cpu, where 0.00 GiB are free" in error and f"`unmask inspect {folder} --budget" in hint


def test_no_tokenizer(spoilt: Path) -> None:
    (spoilt / "tokenizer.json").unlink()
    refused(spoilt, "no tokenizer.json in")


def test_a_tokenizer_of_another_model(spoilt: Path) -> None:
    write_tokenizer(spoilt, tuple(name for name in CONTROL if not name.startswith("<LOC")))
    refused(spoilt, "lacks 1027 control tokens, for example <LOC_0>")
    (spoilt / "tokenizer.json").write_text("{")
    refused(spoilt, "cannot read the tokenizer")


def test_a_tokenizer_of_another_size(spoilt: Path) -> None:
    size = write_tokenizer(spoilt, (*CONTROL, "<|one_more|>"))
    refused(spoilt, f"has {size} ids and the model {size - 1}")


def test_a_tokenizer_in_another_order(spoilt: Path) -> None:
    write_tokenizer(spoilt, (MASK, *(name for name in CONTROL if name != MASK)))
    refused(spoilt, "gives mask_token_id")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat' is not supported; wanted 'spatial_unpad'"),
        ({"image_grid_pinpoints": [[28, 30]]}, "multiples of the view's 28 pixels"),
        ({"image_grid_pinpoints": "anyres_max_9"}, "image_grid_pinpoints"),
        ({"unmask": {"side": 128, "vision": {"legs": 4}}}, "is no vision tower"),
        ({"unmask": {"side": 100, "vision": asdict(VISION)}}, "not a multiple of 32 pixels"),
        ({"unmask": {"side": "wide"}}, "unmask.side 'wide'"),
        ({"unmask": {"wording": "old"}}, "unmask.wording 'old'"),
        ({"unmask": 128}, "unmask.wording ''"),
    ],
)
def test_configurations_that_do_not_fit(spoilt: Path, changes: dict[str, object], match: str) -> None:
    configure(spoilt, **changes)
    refused(spoilt, match)


def test_a_model_without_eyes_draws_and_says_that_it_cannot_look(
    spoilt: Path, picture: Image.Image, recwarn: pytest.WarningsRecorder
) -> None:
    configure(spoilt, mm_vision_tower=None, unmask={"side": 128})
    model = unmask.load(spoilt)
    assert any("unused tensors" in str(w.message) for w in recwarn)
    assert model.generate("a dog", settings=["schedule.steps=2"])[0].image.size == (128, 128)
    for asked in (
        lambda: model.ask(picture, "what?"),
        lambda: model.edit(picture, "go"),
        lambda: model.ground(picture, "x"),
    ):
        with pytest.raises(ValueError, match="no vision tower"):
            asked()


def test_a_model_of_ours_in_this_layout_keeps_its_manners(spoilt: Path, picture: Image.Image) -> None:
    own = asdict(replace(VISION, image=128, patch=16, layers=1))
    configure(spoilt, unmask={"side": 128, "vision": own, "wording": "compact"})
    tensors = {k: v for k, v in load_file(spoilt / "model.safetensors").items() if "encoder.layers.1" not in k}
    tensors[f"model.{LEVEL}embeddings.patch_embedding.weight"] = torch.zeros(16, 3, 16, 16)
    tensors[f"model.{LEVEL}embeddings.position_embedding.weight"] = torch.zeros(64, 16)
    save_file(tensors, spoilt / "model.safetensors")
    model = unmask.load(spoilt)
    assert model.parts.quirks == NO_QUIRKS and model.presets.answer == 4
    asked = Ask(pixels=model.parts.image_views(picture), question="what?", length=2).build(model.parts)
    assert len(asked.span("look")) == 20 and asked.span("answer").segment == 1
    assert model.parts.text.show(asked.ids[:4].tolist()).startswith("<|startoftext|><|start_header_id|>u")
    configure(spoilt, unmask={"side": 256, "vision": own, "wording": "compact"})
    refused(spoilt, "a compact model reads pictures of the size")


def test_our_own_model_keeps_its_manners() -> None:
    mini = unmask.load("mini")
    assert (
        mini.parts.quirks == NO_QUIRKS and mini.parts.views is None and isinstance(mini.parts.net.config, ElasticConfig)
    )
    assert mini.presets.answer == 4 and describe(mini.presets.generate(mini.parts))["schedule"]["steps"] == 16
