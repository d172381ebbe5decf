"""Stories that tell a picture over several sentences, and the causal text network that reads them: the world of ``gill``.

Public ideas: ``story(pair, rng, sentences)`` says class, colour, place and background one after the other; ``language(stories)`` is a small
causal network, trained on text alone.

Shapes: B rows · L tokens · D width.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.pairs import Pair, Pairs
from unmask.data.world.vocabulary import BACKGROUNDS, LEVELS
from unmask.evaluation.judge import Seen
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.captioning import LAST, PAD, Words
from unmask.rng import seeded
from unmask.step import Loss

TOLD = Pairs(
    classes=LEVELS["grid"].classes[:12],
    colours=LEVELS["grid"].colours,
    backgrounds=LEVELS["grid"].backgrounds,
    places=True,
)
SENTENCES, IMG = 4, 4  # of a whole story, and [IMG] tokens behind it


@dataclass(frozen=True, kw_only=True)
class Story:
    """``text``: what was told so far · ``last``: its last sentence · ``prompt``: the same in the words of one prompt · ``told``: which of
    colour, place and background it says.
    """

    pair: Pair
    text: str
    last: str
    prompt: str
    told: frozenset[str]


def story(pair: Pair, rng: Random, sentences: int = SENTENCES) -> Story:
    """The first ``sentences`` of a story: what there is, then its colour, its place and the background in any order."""
    (thing,), more = pair.scene.objects, ["colour", "place", "background"]
    rng.shuffle(more)
    told = more[: sentences - 1]
    place, behind = at(position_word(thing)), BACKGROUNDS[pair.scene.background][0]
    lines = {"colour": f"it is {thing.colour}", "place": f"it is {place}", "background": f"it is {behind}"}
    every = [f"there is {article(thing.name)}", *(lines[name] for name in told)]
    said = noun(thing) if "colour" in told else thing.name
    parts = [article(said), *([place] if "place" in told else []), *([behind] if "background" in told else [])]
    text = " . ".join(every)
    return Story(pair=pair, text=text, last=every[-1], prompt=" ".join(parts), told=frozenset(told))


def shown(seen: Seen, one: Story) -> bool:
    """Whether a picture has the one object of a story, with everything that was told."""
    (thing,) = one.pair.scene.objects
    found = [f for f in seen.objects if f.name == thing.name]
    if len(seen.objects) != 1 or not found:
        return False
    about = replace(thing, x=found[0].box[0], y=found[0].box[1])
    checks = {
        "colour": found[0].colour == thing.colour,
        "place": position_word(about) == position_word(thing),
        "background": seen.background == one.pair.scene.background,
    }
    return all(checks[name] for name in one.told)


# -- the language model ------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """A causal text network with its own table: vectors [B, L, D] -> states -> logits of words and [IMG]."""

    def __init__(self, words: int, *, width: int = 64, layers: int = 2, most: int = 160) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words + IMG, width), nn.Parameter(torch.randn(most, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, words + IMG)

    def states(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        if length > len(self.place):
            raise ValueError(f"a text of {length} tokens is longer than {len(self.place)}; shorten it")
        hidden = nn.Transformer.generate_square_subsequent_mask(length)
        return self.layers(inputs + self.place[:length], mask=hidden, is_causal=True)

    def logits(self, states: Tensor) -> Tensor:
        return self.head(states)


def img_ids(words: Words) -> tuple[int, ...]:
    return tuple(range(len(words.words), len(words.words) + IMG))


def with_images(words: Words, texts: Items[str]) -> tuple[Tensor, Tensor]:
    """Ids [B, L] of texts that end with all [IMG], padded, and their lengths [B] without padding."""
    rows = []
    for text in texts:
        ids = words.ids(text.replace(" . ", " "))
        rows.append(torch.cat([ids[: ids.tolist().index(LAST)], torch.tensor(img_ids(words))]))
    length = torch.tensor([len(one) for one in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD), length


def language(
    words: Callable[[], Words], texts: Callable[[int], list[str]], *, steps: int, seed: int
) -> Recipe[Causal, Tensor]:
    """The text network, from texts alone: ``texts(step)`` are those of a batch."""

    def rows(step: int) -> Tensor:
        return with_images(words(), texts(step))[0][:, :-IMG]

    def loss(model: Causal, ids: Tensor, rng: torch.Generator) -> Loss:
        logits = model.logits(model.states(model.embed(ids)))[:, :-1]
        wanted = ids[:, 1:].flatten()
        value = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=PAD)
        return Loss(total=value, terms={"words": value.detach()}, counts={"words": int((wanted != PAD).sum())})

    return Recipe(
        name="gill.language",
        model=lambda: seeded(lambda: Causal(len(words().words)), seed),
        source=rows,
        objective=loss,
        optim=Optim(lr=2e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=400, bf16=False, device="cpu"),
    )
