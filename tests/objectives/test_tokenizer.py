"""The image tokenizer's teacher (k-means over squares) and the two dense objectives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unmask.models.sizes import SIZES
from unmask.models.vision import Vision
from unmask.objectives.cells import Cells, LabelledVision
from unmask.objectives.tokenizer import Distilled, Squares, assign, fit_squares, kmeans
from unmask.rng import generator

torch.set_num_threads(1)


def clusters(count: int, each: int, width: int, spread: float) -> tuple[Tensor, Tensor]:
    """Centres on a lattice of distance 10, and shuffled points around them."""
    rng = generator("clusters", count, each, width)
    centres = 10.0 * torch.randperm(count, generator=rng)[:, None] * torch.ones(width)
    points = centres.repeat_interleave(each, 0) + spread * torch.randn(count * each, width, generator=rng)
    return centres, points[torch.randperm(len(points), generator=rng)]


def test_assign_is_the_nearest_centre() -> None:
    rng = generator("assign")
    points, centres = torch.randn(9000, 5, generator=rng), torch.randn(40, 5, generator=rng)  # more than one chunk
    index, error = assign(points, centres)
    distance = torch.cdist(points, centres).square()
    assert index.equal(distance.argmin(1))
    torch.testing.assert_close(error, distance.min(1).values, atol=1e-4, rtol=1e-4)
    assert (error >= 0).all()


def test_kmeans_finds_clusters_that_are_there() -> None:
    centres, points = clusters(8, 50, 3, 0.1)
    found = kmeans(points, 40, 20, generator("kmeans"))  # enough of them for every cluster to have one at first
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.3
    assert float(assign(points, found)[1].mean()) < 3 * 0.1**2


def test_kmeans_goes_down_and_is_keyed() -> None:
    points = torch.randn(600, 4, generator=generator("points"))
    errors = [float(assign(points, kmeans(points, 20, n, generator(1)))[1].mean()) for n in (0, 1, 3, 10)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    assert kmeans(points, 20, 3, generator(1)).equal(kmeans(points, 20, 3, generator(1)))
    assert not kmeans(points, 20, 3, generator(1)).equal(kmeans(points, 20, 3, generator(2)))


def test_kmeans_uses_every_centre_though_points_repeat() -> None:
    """Most points are copies of one, so that the first centres coincide and clusters are empty at first."""
    rare = torch.randn(30, 3, generator=generator("rare"))
    points = torch.cat([torch.zeros(2000, 3), rare])
    found = kmeans(points, 16, 12, generator(0))
    assert len(assign(points, found)[0].unique()) >= 15
    assert found.isfinite().all()


def test_kmeans_of_too_few_points_says_so() -> None:
    points = torch.randn(5, 3, generator=generator("few"))
    assert kmeans(points, 5, 2, generator(0)).shape == (5, 3)
    with pytest.raises(ValueError, match="k-means has 5 points for 6 centres; use more images"):
        kmeans(points, 6, 2, generator(0))


def squares(count: int, side: int = 4) -> Tensor:
    return torch.rand(count, 3 * side * side, generator=generator("squares", count))


def test_fitted_components_are_orthonormal_and_keep_distances() -> None:
    data = squares(300)
    fitted = fit_squares(data, torch.ones(300), width=48, size=32, rng=generator(0))
    torch.testing.assert_close(fitted.basis.T @ fitted.basis, torch.eye(48), atol=1e-4, rtol=0)
    z = fitted.latents(data)
    # All 48 of 48 components: distance between latents is distance between pixels.
    torch.testing.assert_close(torch.cdist(z, z), torch.cdist(data, data), atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(z @ fitted.basis.T + fitted.mean, data, atol=1e-4, rtol=0)


def test_fewer_components_are_the_best_ones() -> None:
    rng = generator("plane")
    data = torch.randn(200, 2, generator=rng) @ torch.randn(2, 48, generator=rng)  # truly two-dimensional
    fitted = fit_squares(data, torch.ones(200), width=2, size=8, rng=generator(0))
    back = fitted.latents(data) @ fitted.basis.T + fitted.mean
    torch.testing.assert_close(back, data, atol=1e-3, rtol=1e-3)


def test_frequent_squares_are_served_better() -> None:
    data, counts = squares(400), torch.ones(400)
    counts[:20] = 400
    plain = fit_squares(data, torch.ones(400), width=8, size=16, rng=generator(0))
    fitted = fit_squares(data, counts, width=8, size=16, rng=generator(0))
    few = data[:20]
    assert assign(fitted.latents(few), fitted.codebook)[1].mean() < assign(plain.latents(few), plain.codebook)[1].mean()


def test_codes_of_a_picture_are_those_of_its_squares() -> None:
    fitted = fit_squares(squares(300), torch.ones(300), width=8, size=32, rng=generator(0))
    image = torch.rand(2, 3, 8, 12, generator=generator("image"))
    codes = fitted.codes(image, side=4)
    assert codes.shape == (2, 2, 3)
    for b, r, c in ((0, 0, 0), (0, 1, 2), (1, 1, 0), (1, 0, 1)):
        square = image[b, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten()  # channel first
        z = fitted.latents(square[None])
        assert int(codes[b, r, c]) == int(torch.cdist(z, fitted.codebook).argmin())


# -- the objectives ---------------------------------------------------------------------------------------------------


class Perfect(nn.Module):
    """Encoder and decoder that know the teacher: latents are the teacher's, pixels are looked up by code."""

    def __init__(self, teacher: Squares, pixels: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.teacher, self.pixels, self.error = teacher, pixels, error
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding.from_pretrained(teacher.codebook)
        self.weight = nn.Parameter(torch.zeros(1))

    def from_latents(self, z: Tensor) -> Tensor:
        return self.pixels + self.error + 0 * self.weight

    def latents(self, some: Tensor) -> Tensor:
        return self.teacher.latents(some.flatten(1))[..., None, None]


def test_distilled_is_zero_at_a_perfect_tokenizer_and_by_hand_elsewhere() -> None:
    teacher = fit_squares(squares(300), torch.ones(300), width=8, size=32, rng=generator(0))
    pixels = torch.rand(2, 3, 8, 12, generator=generator("image"))
    some = squares(50).reshape(-1, 3, 4, 4)
    batch = (pixels, teacher.codes(pixels, side=4), some, teacher.latents(some.flatten(1)))
    assert float(Distilled()(Perfect(teacher, pixels), batch, generator(0)).total.detach()) == pytest.approx(
        0, abs=1e-9
    )
    loss = Distilled(absolute=0.5)(Perfect(teacher, pixels, error=0.1), batch, generator(0))
    assert float(loss.terms["mse"]) == pytest.approx(0.01, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(10 * (0.01 + 0.5 * 0.1), rel=1e-4)
    off = (*batch[:3], batch[3] + 1.0)
    expected = 8 / 48  # eight components off by one, as a mean over 48 pixel values
    got = Distilled()(Perfect(teacher, pixels), off, generator(0))
    assert float(got.terms["latents"]) == pytest.approx(expected, rel=1e-4)


def test_cells() -> None:
    config = SIZES["tiny"].vision
    assert config is not None
    torch.manual_seed(0)
    model = LabelledVision(Vision(config, 32), {"class": 5, "part": 3})
    pixels = torch.rand(2, 3, 128, 128, generator=generator("pixels"))
    labels = {k: torch.randint(0, n, (2, 4, 4), generator=generator(k)) for k, n in (("class", 5), ("part", 3))}
    labels["part"][0, 0] = -100  # unknown: neither learned nor counted as wrong
    loss = Cells()(model, (pixels, labels), generator(0))
    with torch.no_grad():
        logits = model(pixels)
    for name, at in labels.items():
        known = at >= 0
        log_p = logits[name].log_softmax(-1)[known]
        assert float(loss.terms[name]) == pytest.approx(-float(log_p.gather(1, at[known][:, None]).mean()), rel=1e-4)
        assert float(loss.terms[f"{name}_wrong"]) == pytest.approx(float((log_p.argmax(1) != at[known]).float().mean()))
    assert float(loss.total.detach()) == pytest.approx(float(loss.terms["class"]) + float(loss.terms["part"]), rel=1e-5)
