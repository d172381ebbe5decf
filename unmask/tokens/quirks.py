"""Where the released model's own inference departs from its training format and from ours, all in one value (spec 2.1, 2.2, 8.7).

Public idea: published figures come from ``ReleasedQuirks()``; ``NO_QUIRKS`` is what our own models are trained and asked with. A field
changed with ``dataclasses.replace`` is an experiment.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.tokens.prompts import Conditions


@dataclass(frozen=True, kw_only=True)
class ReleasedQuirks:
    """Each on by default.

    ``dropped_token``: the first text token after a picture is lost where a sequence begins with the start of text ·
    ``trailing_header``: an empty assistant header follows the picture that is drawn · ``stray_apostrophe``: grounding begins with
    one, before the start of text (so that no token is lost there) · ``conditions``: what is said of a picture that is drawn when
    the user says nothing, and ``conditions_end`` after any · ``one_segment``: question and answer are read by everything, and a
    phrase has a sequence of its own · ``truncated_pixels``: decoded pixels are cut to whole numbers, not rounded (spec 1.8).
    """

    dropped_token: bool = True
    trailing_header: bool = True
    stray_apostrophe: bool = True
    conditions: Conditions | None = Conditions(width=1024, height=1024, top=0, left=0, score=7.11)
    conditions_end: str = ";"
    one_segment: bool = True
    truncated_pixels: bool = True


NO_QUIRKS = ReleasedQuirks(
    dropped_token=False,
    trailing_header=False,
    stray_apostrophe=False,
    conditions=None,
    conditions_end="",
    one_segment=False,
    truncated_pixels=False,
)
