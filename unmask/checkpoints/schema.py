"""Configurations are checked before anything is built from them: every field's type and range, and its size in the tensors on disk.

Public idea: ``read_fields(path, Kind) -> Kind`` reads a JSON file with bounds and validates it; ``refuse_sizes`` and ``refuse_layers``
compare the values with the safetensors headers. A layout declares one subclass of ``Fields`` with the types of this file:

    class Config(Fields):
        hidden_size: Width
        num_hidden_layers: Layers
        rope_theta: Theta

    config = read_fields(folder / "config.json", Config)

Every refusal is a CheckpointError that names the file, the field, what came and what was wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unmask.checkpoints.stream import CheckpointError, Stored
from unmask.files import MOST_JSON, FileRefused
from unmask.files import read_json as read_bounded
from unmask.json_types import Json

# Ranges that hold every known model with a margin of at least 8; what lies outside is damaged.
Rows = Annotated[int, Field(ge=1, le=2**22)]  # of a vocabulary or a table of codes
Width = Annotated[int, Field(ge=1, le=2**17)]  # channels of a stream, or of its feed-forward
Heads = Annotated[int, Field(ge=1, le=1024)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]  # one side of a picture or patch
TokenId = Annotated[int, Field(ge=0, le=2**22)]
Theta = Annotated[float, Field(ge=10, lt=1e9)]  # base of the rotary positions
Epsilon = Annotated[float, Field(ge=1e-12, le=1e-2)]  # of a norm

_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "extra_forbidden": "no such field",
}
_LIMITS: dict[str, Callable[[Any], str]] = {
    "greater_than": lambda c: f"a number above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"less than {c['lt']:.16g}",
    "less_than_equal": lambda c: f"at most {c['le']:.16g}",
    "literal_error": lambda c: f"{c['expected']}",
    "too_short": lambda c: f"at least {c['min_length']} items",
    "too_long": lambda c: f"at most {c['max_length']} items",
}
_SHOWN = 60  # characters of a rejected value


class Fields(BaseModel):
    """The fields of a configuration that are read; others are ignored. Types are strict: ``true`` and ``"8"`` are not numbers, and numbers
    are finite.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


F = TypeVar("F", bound=Fields)


def read_json(path: Path, *, most: int = MOST_JSON) -> Json:
    """A JSON object from a regular file of at most ``most`` bytes and bounded depth. CheckpointError for anything else."""
    try:
        found = read_bounded(path, most=most)
    except FileRefused as error:
        raise CheckpointError(f"cannot read {path}: {error}; is this a folder of weights?") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} is not a model configuration: it holds {shown(found)}, wanted an object; "
            "is this a folder of unmask, LaViDa-O or LLaDA?"
        )
    return found


def read_fields(path: Path, kind: type[F]) -> F:
    """The fields of a JSON file. CheckpointError names the first that is missing or wrong, and how many others are."""
    return fields(kind, read_json(path), path)


def fields(kind: type[F], raw: object, path: Path) -> F:
    """``read_fields`` of a value that was read from ``path`` already."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(f"{_problem(error, path)}; correct it, or copy or download the file again") from error


def invalid(path: Path, problem: str) -> CheckpointError:
    """The error for values of ``path`` that contradict each other; ``problem`` names the fields."""
    return CheckpointError(f"{path}: invalid value: {problem}; correct it, or copy or download the file again")


def _problem(error: ValidationError, path: Path) -> str:
    """Missing fields together; else the first wrong one and the number of the others. Of a union, the first branch is reported."""
    found = error.errors(include_url=False)
    if missing := [_name(e["loc"]) for e in found if e["type"] == "missing"]:
        return f"{path} lacks {', '.join(missing[:8])}"
    first = found[0]
    others = len({e["loc"] for e in found}) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "value_error":  # of a cross-field rule, which names its fields
        return f"{path}: invalid value: {str(first['ctx']['error'])}{more}"
    context = first.get("ctx", {})
    if first["type"] in _LIMITS:
        wanted = _LIMITS[first["type"]](context)
    else:
        wanted = _WANTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    return f"{path}: invalid value: {_name(first['loc'])} is {shown(first['input'])}, wanted {wanted}{more}"


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:60] for part in place) or "it"


def shown(value: object) -> str:
    """The start of a value, on one line. A nested value is not written out: it may be large."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"an empty {kind.split()[1]}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# -- compared with the tensors on disk --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Size:
    """That ``field`` is the length of axis ``axis`` of a stored tensor."""

    field: str
    value: int
    tensor: str
    axis: int


def refuse_sizes(sizes: Iterable[Size], found: Mapping[str, Stored], path: Path) -> None:
    """CheckpointError where a field of ``path`` is not the size that a tensor has on disk; absent tensors are not compared."""
    for size in sizes:
        if (stored := found.get(size.tensor)) is None:
            continue
        if len(stored.shape) <= size.axis or stored.shape[size.axis] != size.value:
            raise CheckpointError(
                f"{path}: {size.field} {size.value} does not fit the weights: {size.tensor} is {stored.shape}; "
                "use the config.json that they were saved with"
            )


def count_layers(found: Iterable[str], prefix: str) -> int:
    """How many different numbers follow ``prefix`` and a dot in the names of tensors: ``blocks.0.q``, ``blocks.1.q`` are two."""
    start = prefix + "."
    return len({name[len(start) :].split(".", 1)[0] for name in found if name.startswith(start)})


def refuse_layers(field: str, value: int, found: Iterable[str], prefix: str, path: Path) -> None:
    """CheckpointError where the tensors on disk belong to another number of layers than a field of ``path`` says."""
    if (there := count_layers(found, prefix)) != value:
        gap = f"missing {prefix}.{there}" if value > there else f"nothing would read {prefix}.{value}"
        raise CheckpointError(
            f"{path}: {field} {value} does not fit the weights, which have {there} layers ({gap}); "
            "use the config.json that they were saved with"
        )
