"""JSON in Python. Public idea: ``Json``, a JSON object as ``json.loads`` returns it; its values are not checked."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]  # the keys are field names; a reader checks the values that it uses
