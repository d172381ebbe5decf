"""LaViDa: complementary masks in training; few steps, early tokens first, behind a prompt that is computed once.

Paper: Li, Kallidromitis, Bansal and others, "LaViDa: A Large Diffusion Language Model for Multimodal Understanding", NeurIPS 2025,
arXiv 2505.16839.

Equations: of N masked tokens, the share N s(k / T) is unmasked after step k of T, in reverse order of the parts of the time shift

    s(u) = a u / (1 + (a - 1) u)

so a = 1/3 unmasks many tokens at first, a = 1 equal parts and a = 3 many at last (``Shift``). The paper uses 1/3; the released code has 3
where no shift is given, and 0.33 in its speed runs, whose counts can differ from those of 1/3. In training, a row with the masked tokens M
is learned twice, with M and with all other tokens of its answer masked: every token counts once per step, and the loss is the plain mean
(``Masked(complementary=True)``; the paper prints a weight 1/t, which the code has not). Infilling: text in which some gaps hold 0 to 5
fillers and a marker is learned (``family_rows.Slotted``); the marker is never masked, so a slot of masks with a marker behind it may come
out as fewer words and fillers (``drafts``).

What changes: the objective (a second view of each row); the schedule; the cache, with a prior that keeps the prompt from attending to the
answer (``PrefixLM``, ``PrefixCache``). ``--schedule``, ``--cache prefix`` and ``[slot:N]`` are these parts alone; the sampler ``lavida``
is the published combination. Training: ``unmask train families.lavida``, and ``-o masks=complementary -o slots=0.8`` of ``finetune``.

What it costs: a complement doubles the rows of a step; at equal rows, half as many different answers are seen. The prefix is exact where
the prompt does not attend to the answer; for models trained with attention in both directions it is another function, without training.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import dataclasses
import math

from unmask.evaluation.sampler_axes import named_change, steps_of
from unmask.methods.card import Card
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical, Greedy

_LONGEST = 2**14  # tokens; more than any answer has


def lavida(base: Sampler, *, shift: float = 0.3333333333333333, share: float = 0.5) -> Sampler:
    """A share of the steps, many tokens early, behind a prompt that is computed once."""
    if not 0 < share <= 1:
        raise ValueError(f"share is of the sampler's own steps, above 0 and at most 1, got {share}")
    steps = math.ceil(share * steps_of(base, _LONGEST))
    chosen = dataclasses.replace(base, selection=Confident())
    return named_change(f"shift:shift={shift!r}:steps={steps}", "prefix")(chosen)


CARD = Card(
    title="LaViDa: A Large Diffusion Language Model for Multimodal Understanding",
    paper="arXiv 2505.16839",
    year=2025,
    changes="objective: every row with a mask and its complement · schedule: time shift 1/3 · cache: a prefix at inference",
    claim="+4.1 CIDEr at 1.92 times the speed of Open-LLaVA-Next; 59 % better constrained completion of poems.",
    status="reference",
    parts={
        "sampler": (
            lavida(Sampler(schedule=Equal(steps=6), token_sampler=Greedy(), selection=Confident())),
            lavida(
                Sampler(schedule=Equal(steps=4), token_sampler=Categorical(temperature=0.8), selection=Confident()),
                shift=3.0,
                share=1.0,
            ),
        ),
    },
    sampler=("lavida",),
    recipe="families.lavida",
)
