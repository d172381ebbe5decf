from unmask.json_types import Json
from unmask.serving.service import Served


def limited(found: Json, model: Served) -> None:
    """Add the limits of the served model to the request bodies of a document."""
