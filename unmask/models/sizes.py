"""Named sizes. Public idea: ``ElasticConfig`` is all that a model is built from, and ``SIZES`` names some of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

REDUCTIONS = ("conv", "bilinear", "average", "max", "none")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The semantic encoder (spec 1.9): a patch transformer without its last layer, conv pooling, projector, newline.

    ``layers`` counts the layers that are kept. ``image`` and ``patch`` are pixels. ``reduction``: how the patches of a view become fewer:
    ``conv``, a 2x2 convolution before the projector (LaViDa-O), after it ``bilinear``, ``average`` or ``max`` (LaViDa), or ``none``.
    """

    image: int = 384
    patch: int = 14
    width: int = 1152
    layers: int = 26
    heads: int = 16
    mlp: int = 4304
    eps: float = 1e-6
    reduction: str = "conv"

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction {self.reduction!r} is none of {', '.join(REDUCTIONS)}")

    @property
    def side(self) -> int:
        """Patches along one side."""
        return self.image // self.patch

    @property
    def pooled(self) -> int:
        """Features along one side after the 2x2 pooling (an odd last row and column fall away), or after interpolation to half the side,
        rounded up.
        """
        if self.reduction == "none":
            return self.side
        return (self.side + 1) // 2 if self.reduction == "bilinear" else self.side // 2

    @property
    def tokens(self) -> int:
        """Tokens of one view as the text model reads it: the pooled map with one newline a row."""
        return self.pooled * (self.pooled + 1)


@dataclass(frozen=True, kw_only=True)
class QwenVisionConfig:
    """The tower of Qwen2.5-VL as Dimple has it (``models/qwen_vision.py``). ``patch``, ``window`` in pixels; ``merge``: patches along one
    side of a block, which is one token · ``full``: numbers of the layers that attend everywhere · ``out``: width of a merged block ·
    ``mean``, ``std``: of the pixels.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 3420
    patch: int = 14
    temporal: int = 2
    merge: int = 2
    window: int = 112
    full: tuple[int, ...] = (7, 15, 23, 31)
    out: int = 3584
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must be heads {self.heads} times a multiple of 4")
        if self.window < self.merge * self.patch or self.window % (self.merge * self.patch):
            raise ValueError(
                f"window {self.window} must be a multiple of a block, {self.merge} patches of {self.patch}"
            )


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Routed experts in place of a layer's feed-forward (``models/experts.py``); the defaults are those of LLaDA2.0-mini and -Uni.

    ``count``, ``chosen``: experts of a layer, and how many serve a position · ``width``: of one expert · ``shared``: experts that serve
    every position, as one of ``shared * width`` · ``groups``, ``groups_chosen``: experts are chosen from the best of so many consecutive
    groups · ``scale``: of the weights · ``dense``: the first layers, which keep one feed-forward of ``ElasticConfig.mlp``.
    """

    count: int = 256
    chosen: int = 8
    width: int = 512
    shared: int = 1
    groups: int = 8
    groups_chosen: int = 4
    scale: float = 2.5
    dense: int = 1

    def __post_init__(self) -> None:
        if (
            min(self.count, self.chosen, self.width, self.groups, self.groups_chosen) < 1
            or self.shared < 0
            or self.dense < 0
        ):
            raise ValueError(f"numbers of experts, groups and channels must be at least 1, got {self}")
        if self.count % self.groups or self.groups_chosen > self.groups:
            raise ValueError(
                f"{self.count} experts do not divide into {self.groups} groups of which {self.groups_chosen} are chosen"
            )
        if self.chosen > (most := self.groups_chosen * self.count // self.groups):
            raise ValueError(f"chosen {self.chosen} experts is more than the {most} of {self.groups_chosen} groups")


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """Elastic Mixture-of-Transformers (spec 1.1 to 1.7). Defaults are the released 10.4 B model.

    ``joint_layers``: number of layers in which both branches attend to each other; the rest are split. The released code
    tests "index > 16", so 17 layers are joint although the paper says 16 (spec 1.4). ``gen_width`` 0: a text model, without the
    generation branch and the code path (LLaDA). ``text_registers``, ``code_registers``: registers of a group of masked tokens that are
    scored (Sparse-LaViDa, ``models/registers.py``), 0 for none · ``register_rows``: their different vectors, 1 where all share one.

    Other language models: ``kv_heads``: heads of keys and values, each read by heads / kv_heads queries (grouped-query attention), 0 for
    as many as ``heads`` · ``head_width``: channels of a head, 0 for width / heads · ``qkv_bias``: of q, k and v · ``shifted``: the
    position before a token predicts it (Dream); the first token of a row is predicted at its own position · ``tower``: another vision
    tower than ``vision`` · ``rope_sections``: how many pairs of channels turn with the time, the row and the column of a position
    (M-RoPE); none where all turn with its number.
    ``rope_factor``: multiplies ``rope_theta`` for rows that are longer than those of the training (``rope.ntk_factor``), 1 for none.
    ``first_code``: text id of image code 0 in a text model whose vocabulary has the ``codes`` as rows (MMaDA, Lumina-DiMOO); 0: none.
    ``qk_norm``: a norm over each head of q and k, before the rotation · ``rope_width``: channels of a head that turn, its first ones; 0 for
    all · ``experts``: routed experts in the feed-forward slot; None: one feed-forward (LLaDA2).
    """

    vocab_size: int = 127378
    width: int = 4096
    heads: int = 32
    layers: int = 32
    mlp: int = 12288
    gen_width: int = 2048
    gen_mlp: int = 8192
    joint_layers: int = 17
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    codes: int = 8192
    code_rows: int = 8448
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    text_registers: int = 0
    code_registers: int = 0
    register_rows: int = 1
    kv_heads: int = 0
    head_width: int = 0
    qkv_bias: bool = False
    shifted: bool = False
    first_code: int = 0
    tower: QwenVisionConfig | None = None
    rope_sections: tuple[int, ...] = ()
    rope_factor: float = 1.0
    qk_norm: bool = False
    rope_width: int = 0
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        if not self.head_width and (self.width % self.heads or (self.width // self.heads) % 2):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.head_width < 0 or self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} must be even: rotary positions turn pairs of channels")
        if self.kv_heads < 0 or (self.kv_heads and self.heads % self.kv_heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.rope_sections and (len(self.rope_sections) != 3 or 2 * sum(self.rope_sections) != self.head_channels):
            raise ValueError(
                f"rope_sections {self.rope_sections} must be three numbers that sum to half a head, {self.head_channels // 2}"
            )
        if (
            self.rope_width % 2
            or not 0 <= self.rope_width <= self.head_channels
            or (self.rope_width and self.rope_sections)
        ):
            raise ValueError(
                f"rope_width {self.rope_width} must be an even number of a head's {self.head_channels} channels, without rope_sections"
            )
        if self.experts and self.gen_width:
            raise ValueError(
                "routed experts serve a text model; a generation branch has its own feed-forward, leave one out"
            )
        if not self.rope_factor >= 1:
            raise ValueError(f"rope_factor {self.rope_factor} must be at least 1: it makes the rotary base larger")
        if self.gen_width > self.width:
            raise ValueError(
                f"gen_width {self.gen_width} is larger than width {self.width}: the output projection is shared"
            )
        if self.gen_width and self.code_rows < self.codes + 2:
            raise ValueError(f"code_rows {self.code_rows} leaves no row for the mask code {self.codes + 1}")
        if self.first_code and (self.gen_width or not 0 < self.first_code <= self.vocab_size - self.codes):
            raise ValueError(
                f"first_code {self.first_code}: {self.codes} codes from there on are not rows of a text model's {self.vocab_size}; "
                "a model with a generation branch has tables of its own, and first_code 0"
            )
        most = max(self.text_registers, self.code_registers)
        if min(self.text_registers, self.code_registers) < 0 or (most and self.register_rows not in (1, most)):
            raise ValueError(
                f"text_registers {self.text_registers} and code_registers {self.code_registers} are numbers of tokens, and register_rows "
                f"is 1 or the larger of them, got {self.register_rows}"
            )

    @property
    def head_channels(self) -> int:
        """Channels of one attention head."""
        return self.head_width or self.width // self.heads

    @property
    def query_width(self) -> int:
        """Channels of all queries together."""
        return self.heads * self.head_channels

    @property
    def key_width(self) -> int:
        """Channels of all keys together, and of all values."""
        return (self.kv_heads or self.heads) * self.head_channels

    @property
    def mask_code(self) -> int:
        """The id of a masked code. One id above the codes is left unused, as in the released table (spec 1.2)."""
        return self.codes + 1


def text_config(
    *, vocab_size: int, width: int, heads: int, layers: int, mlp: int, rope_theta: float, shifted: bool = False
) -> ElasticConfig:
    """A text network: without generation branch, image codes and vision tower."""
    return ElasticConfig(
        vocab_size=vocab_size,
        width=width,
        heads=heads,
        layers=layers,
        mlp=mlp,
        gen_width=0,
        gen_mlp=0,
        joint_layers=layers,
        rope_theta=rope_theta,
        codes=0,
        code_rows=0,
        vision=None,
        shifted=shifted,
    )


_LLADA = ElasticConfig(vocab_size=126464, gen_width=0, gen_mlp=0, joint_layers=32, codes=0, code_rows=0, vision=None)
_DREAM = ElasticConfig(
    vocab_size=152064,
    width=3584,
    heads=28,
    kv_heads=4,
    layers=28,
    mlp=18944,
    gen_width=0,
    gen_mlp=0,
    joint_layers=28,
    rope_theta=1e6,
    norm_eps=1e-6,
    codes=0,
    code_rows=0,
    vision=None,
    qkv_bias=True,
    shifted=True,
)
_LLADA2 = ElasticConfig(
    vocab_size=157184,
    width=2048,
    heads=16,
    kv_heads=4,
    head_width=128,
    layers=20,
    mlp=5120,
    gen_width=0,
    gen_mlp=0,
    joint_layers=20,
    rope_theta=600_000.0,
    rope_width=64,
    norm_eps=1e-6,
    codes=0,
    code_rows=0,
    vision=None,
    qk_norm=True,
    experts=ExpertsConfig(),
)
_LAVIDA_VISION = VisionConfig(reduction="bilinear")
SIZES: dict[str, ElasticConfig] = {
    "tiny": ElasticConfig(
        vocab_size=1536,
        width=32,
        heads=2,
        layers=3,
        mlp=48,
        gen_width=16,
        gen_mlp=32,
        joint_layers=2,
        rope_theta=1000.0,
        codes=64,
        code_rows=66,
        vision=VisionConfig(image=128, patch=16, width=16, layers=1, heads=2, mlp=32),
    ),
    "mini": ElasticConfig(
        vocab_size=1792,
        width=192,
        heads=4,
        layers=8,
        mlp=512,
        gen_width=160,
        gen_mlp=640,
        joint_layers=6,
        rope_theta=500.0,
        codes=4096,
        code_rows=4098,
        vision=VisionConfig(image=128, patch=16, width=128, layers=3, heads=4, mlp=512),
    ),
    "small": ElasticConfig(
        vocab_size=1792,
        width=256,
        heads=4,
        layers=10,
        mlp=640,
        gen_width=192,
        gen_mlp=768,
        joint_layers=7,
        rope_theta=2000.0,
        codes=4096,
        code_rows=4098,
        vision=VisionConfig(image=256, patch=16, width=192, layers=4, heads=4, mlp=768),
    ),
    "lavida_o": ElasticConfig(),
    "llada_8b": _LLADA,
    "dream_7b": _DREAM,
    "lavida_8b": replace(_LLADA, vision=_LAVIDA_VISION),
    "rediff_8b": replace(_LLADA, vision=replace(_LAVIDA_VISION, reduction="none")),
    "lavida_dream_7b": replace(_DREAM, vision=_LAVIDA_VISION),
    "dimple_7b": replace(_DREAM, tower=QwenVisionConfig(), rope_sections=(16, 24, 24)),
    "mmada_8b": replace(_LLADA, vocab_size=134656, codes=8192, first_code=126349),
    "lumina_dimoo_8b": replace(_LLADA, vocab_size=134548, codes=8192, first_code=126356),
    "llada2_mini": _LLADA2,
    "llada2_flash": replace(
        _LLADA2, width=4096, heads=32, layers=32, joint_layers=32, mlp=9216, experts=ExpertsConfig(width=1024)
    ),
    "llada2_uni": replace(_LLADA2, vocab_size=173568, codes=16384, first_code=157184),
}
