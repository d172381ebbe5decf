"""The codes of ``mini``'s image tokenizer: fitted once for all processes, and told apart by the encoder."""

from __future__ import annotations

import torch

from unmask.data.sources import pixels_of
from unmask.data.world.scenes import sample
from unmask.objectives.tokenizer import Squares
from unmask.recipes import mini_vq
from unmask.recipes.mini_vq import ALIKE, CONFIG, MOVED, dictionary, settle
from unmask.tokens.vq import VQ


def test_the_codebook_does_not_depend_on_threads_and_is_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two, _ = mini_vq._fitted(0, 400)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one, squares = dictionary(0, 400, str(tmp_path))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.codebook, two.codebook) and torch.equal(one.basis, two.basis)
    dictionary.cache_clear()
    again, kept = dictionary(0, 400, str(tmp_path))
    assert torch.equal(again.codebook, one.codebook) and torch.equal(kept, squares)


def test_of_codes_that_look_the_same_the_frequent_one_stays() -> None:
    teacher, _ = dictionary(0, 400)
    pixels = pixels_of([sample("grid", "train", 0, i) for i in range(8)], 128)
    frequent = int(teacher.codes(pixels).flatten().mode().values)
    rare = 0 if frequent else 1
    book = teacher.codebook.clone()
    book[rare] = book[frequent] + 0.01 / book.shape[1] ** 0.5
    model = VQ(CONFIG)
    settle(model, Squares(mean=teacher.mean, basis=teacher.basis, codebook=book), pixels)
    table = model.quantize.embedding.weight
    assert torch.equal(table[frequent], book[frequent])
    assert float((table.detach()[rare] - book[frequent]).norm()) - MOVED < 1e-3 and MOVED > ALIKE
    stays = (torch.cdist(book, book) < ALIKE).sum(1) == 1
    assert torch.equal(table[stays], book[stays])
