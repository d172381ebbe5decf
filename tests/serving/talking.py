"""A model of talks that follows the rules of the drawn face exactly, at no cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from unmask.data.world import puppet
from unmask.recipes.talking_rows import SOUND, tokens
from unmask.recipes.x_streamer import Chunk


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """``seconds``: of a chunk · ``fails``: the number of the chunk that cannot be made."""

    seconds: float = 0.05
    fails: int = -1
    faces: int = puppet.FACES
    rate: int = puppet.RATE
    moves: str = "<.>"

    def stream(self, text: Iterable[str], moves: Iterable[str], *, face: int, seed: int) -> Iterator[Chunk]:
        place = 1
        for number, (letter, sign) in enumerate(zip(text, moves, strict=False)):
            if number == self.fails:
                raise RuntimeError("the network broke")
            said, move = puppet.syllable(letter), puppet.MOVES[sign]
            (moment,) = puppet.follow(face, place, [said], [move])
            place = moment.look.place
            ids = tokens(moment, said, move)
            yield Chunk(picture=puppet.picture(ids[3:]), sound=puppet.tone(int(ids[2]) - SOUND))
