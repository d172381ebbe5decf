"""ProMoE: experts for diffusion whose router is taught, by condition first and then by prototypes that must differ.

Paper: Wei et al., "Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing Guidance", ICLR 2026, arXiv 2510.24711.

Equations: all tokens of a row whose condition was dropped for guidance go to one expert U. Any other token x goes to the experts with the
largest cosine to its prototype p_j, and the cosine is the weight:

    y = shared(x) + sum over the k best of cos(x, p_j) E_j(x),      y = shared(x) + U(x) without a condition

An expert is down(gelu(up x)), half as wide inside as the feed-forward that it stands for. The contrast teaches the prototypes: with m_j the
mean of the tokens that expert j got,

    loss = mean over i of -ln softmax over j of (cos(p_i, m_j) / .07) at j = i

over the experts that got a token (the paper's text has rows and columns the other way round), 0 for fewer than two. It is added with a
gradient of 1, and takes the place of the usual balance of loads. ``ExpertChoice`` lets every expert take its share of each row instead.

What changes: the feed-forward of every second layer (``models/prototype_experts.py``), and with it the loss.
What it costs: two experts of half width for each token, as much as the dense feed-forward; 1 + (E + 1) / 2 times its parameters.

Shapes: E routed experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from unmask.methods.card import Card
from unmask.models.elastic import Elastic
from unmask.models.prototype_experts import PrototypeConfig, RoutedExperts, TokenChoice, WithExperts, by_softmax

EXPERTS, CONTRAST = 12, 1.0  # of the released configurations


def prototypes(width: int, *, inner: int, routed: int = EXPERTS, contrast: float = CONTRAST) -> RoutedExperts:
    """The paper's feed-forward: one expert a token by cosine, with contrast."""
    return RoutedExperts(PrototypeConfig(width=width, inner=inner, routed=routed, contrast=contrast))


def balanced(width: int, *, inner: int, routed: int = EXPERTS, weight: float = 0.01) -> RoutedExperts:
    """The usual one, for comparison: one expert a token by softmax, with a balance of loads."""
    return RoutedExperts(
        PrototypeConfig(
            width=width,
            inner=inner,
            routed=routed,
            choice=TokenChoice(),
            gate=by_softmax,
            contrast=0.0,
            balance=weight,
        )
    )


def every_second(layers: int) -> Iterable[int]:
    """The layers that get experts in the paper."""
    return range(1, layers, 2)


def promoe(net: Elastic, *, routed: int = EXPERTS, spans: Iterable[str] = ("prompt",)) -> nn.Module:
    """A network with new experts in every second layer, half as wide inside as its feed-forward. ``spans``: of its condition."""
    make = partial(prototypes, inner=net.config.mlp // 2, routed=routed)
    return WithExperts(net, make, every_second(net.config.layers), spans)


CARD = Card(
    title="Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing Guidance",
    paper="arXiv 2510.24711",
    year=2025,
    changes="backbone: experts in every second layer, routed by condition and by prototypes that a contrast keeps apart",
    claim="Experts that are taught what to specialise in beat dense and other mixed diffusion transformers of the same cost.",
    status="reference",
    figure="what a token's expert tells about whether the token is masked, 3 networks, 600 steps: .393 [.053, .733] nats more than "
    "with softmax and balance; about the picture's object .007 [-.139, .153] more; loss .025 [.005, .046] above dense of equal "
    "cost; .47 of drawings right, dense .56",
    paper_figure="FID 24.4 against 30.6 dense (ImageNet 256, B, without guidance)",
    recipe="promoe.drawer",
)
