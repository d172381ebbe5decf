"""The field of a drawing that may be changed while it runs. Public idea: ``Lively``, which ``schema.Draw`` has among its parts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unmask.serving.unknown_fields import refuse_field
from unmask.tasks.live import LONGEST_HOLD


class Lively(BaseModel):
    """Changes during a drawing."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    live: int | None = Field(
        None,
        ge=0,
        le=LONGEST_HOLD,
        description="With stream: the drawing may be changed while it runs, and for so many seconds after its last token, by PATCH to "
        "/v1/images/generations/{name}; the header x-unmask-run has the name. One attempt.",
    )

    @model_validator(mode="after")
    def _one_streamed_attempt(self) -> Lively:
        if self.live is not None and not getattr(self, "stream", True):
            raise refuse_field("live", None, "a drawing is changed while it is streamed; send stream as well")
        if self.live is not None and (getattr(self, "reflect", None) or 1) > 1:
            raise refuse_field("live", None, "a live drawing is one attempt; leave out reflect")
        return self
