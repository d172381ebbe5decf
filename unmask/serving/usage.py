"""Numbers of tokens of a call, as OpenAI's image answers have them. Public idea: ``Usage.of(sequence) + ...``, ``to_json``."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.json_types import Json
from unmask.sequence import Kind, Sequence


@dataclass(frozen=True, kw_only=True)
class Usage:
    """``text_read``, ``image_read``: tokens that were given · ``text_written``, ``image_written``: tokens that were masked, so generated.

    A token of an image is one code, or one row of features of the vision tower.
    """

    text_read: int = 0
    image_read: int = 0
    text_written: int = 0
    image_written: int = 0

    @classmethod
    def of(cls, sequence: Sequence) -> Usage:
        """Of a sequence before its first step."""
        read, written = [0, 0], [0, 0]
        for span in sequence.spans:
            image = span.kind != Kind.TEXT
            masked = int(sequence.masked[span.start : span.stop].sum()) if span.writable else 0
            written[image] += masked
            read[image] += len(span) - masked
        return cls(text_read=read[0], image_read=read[1], text_written=written[0], image_written=written[1])

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            text_read=self.text_read + other.text_read,
            image_read=self.image_read + other.image_read,
            text_written=self.text_written + other.text_written,
            image_written=self.image_written + other.image_written,
        )

    def to_json(self) -> Json:
        read, written = self.text_read + self.image_read, self.text_written + self.image_written
        return {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": self.text_read, "image_tokens": self.image_read},
            "output_tokens": written,
            "output_tokens_details": {"text_tokens": self.text_written, "image_tokens": self.image_written},
            "total_tokens": read + written,
        }
