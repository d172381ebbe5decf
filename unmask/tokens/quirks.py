"""Deviations of the released model's inference code from its training format, as one value (spec 2.1, 2.2, 8.7).

Public idea: ``ReleasedQuirks()`` reproduces published results; ``NO_QUIRKS`` is used for our own models, in training and inference. Change
single fields with ``dataclasses.replace`` for an ablation.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.tokens.prompts import Conditions


@dataclass(frozen=True, kw_only=True)
class ReleasedQuirks:
    """All enabled by default.

    ``dropped_token``: the first text token after an image is dropped in sequences that begin with the start-of-text token ·
    ``trailing_header``: an empty assistant header follows the generated image · ``stray_apostrophe``: grounding sequences begin with an
    apostrophe before the start-of-text token (so no token is dropped there) · ``conditions``: conditions used if the user gives none;
    ``conditions_end`` follows any conditions · ``one_segment``: the prompt is one segment, so phrases and questions about a picture attend
    to each other · ``prefix_lm``: when an answer, plan or critique is generated, the prompt does not attend to it, so the prompt's keys and
    values are computed once (spec 4.1); False: everything attends to everything, as in training · ``truncated_pixels``: decoded pixels are
    truncated to integers, not rounded (spec 1.8).
    """

    dropped_token: bool = True
    trailing_header: bool = True
    stray_apostrophe: bool = True
    conditions: Conditions | None = Conditions(width=1024, height=1024, top=0, left=0, score=7.11)
    conditions_end: str = ";"
    one_segment: bool = True
    prefix_lm: bool = True
    truncated_pixels: bool = True


NO_QUIRKS = ReleasedQuirks(
    dropped_token=False,
    trailing_header=False,
    stray_apostrophe=False,
    conditions=None,
    conditions_end="",
    one_segment=False,
    prefix_lm=False,
    truncated_pixels=False,
)
