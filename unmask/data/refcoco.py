"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions for COCO images (Kazemzadeh et al., 2014; Yu et al., 2016; Mao et al., 2016).

Public idea: ``read_refcoco(refs) -> (Expression, …)``. The release is ``refs(unc).p`` (RefCOCOg: ``refs(umd).p``) with ``instances.json``
beside it. The first is a pickle, which can run arbitrary code when loaded: this reader takes the same list as JSON instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.data.published import Entry, FormatError, entry_of, first_twice, inside, json_of, short

CONVERT = (
    "python -c \"import json,pickle,sys;json.dump(pickle.load(open(sys.argv[1],'rb')),open(sys.argv[2],'w'))\" "
    "'refs(unc).p' refs.json"
)
_PICKLES = (".p", ".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class Expression:
    """``phrase`` refers to the object in ``box`` (x1, y1, x2, y2 in pixels) of an image of ``size`` (width, height)."""

    key: str
    phrase: str
    split: str
    picture: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]


def read_refcoco(refs: Path, instances: Path | None = None) -> tuple[Expression, ...]:
    """All expressions of a refs file, with boxes from ``instances`` (default: ``instances.json`` in the same folder)."""
    if refs.suffix in _PICKLES:
        raise FormatError(
            f"{refs} is a pickle, which can run arbitrary code when loaded; if you trust it, convert it once: {CONVERT}"
        )
    boxes = instances or refs.parent / "instances.json"
    if not boxes.is_file():
        raise FormatError(f"{boxes} does not exist; put the instances.json of the release in the folder of {refs.name}")
    pictures, places = _instances(boxes)
    made = [e for i, ref in enumerate(_listed(refs)) for e in _expressions(ref, f"{refs.name}[{i}]", pictures, places)]
    if (doubled := first_twice([e.key for e in made])) is not None:
        raise FormatError(f"{refs.name}: duplicate sent_id {doubled}; ids must be unique")
    return tuple(made)


def _listed(refs: Path) -> Sequence[object]:
    found = json_of(refs)
    if not isinstance(found, list) or not found:
        raise FormatError(f"{refs.name} holds {short(found)}; expected a list of refs, as in the pickle")
    return found


def _instances(path: Path) -> tuple[dict[int, Entry], dict[int, Entry]]:
    """Images and annotations by their ids."""
    whole = entry_of(json_of(path), path.name)
    for name in ("images", "annotations"):
        whole.get(name, list)
    pictures, places = ({e.get("id", int): e for e in whole.objects(n)} for n in ("images", "annotations"))
    return pictures, places


def _expressions(value: object, place: str, pictures: dict[int, Entry], places: dict[int, Entry]) -> list[Expression]:
    ref = entry_of(value, place)
    annotation, image = ref.get("ann_id", int), ref.get("image_id", int)
    if annotation not in places or image not in pictures:
        lacking = f"annotation {annotation}" if annotation not in places else f"image {image}"
        raise ref.wrong(f"instances.json has no {lacking}", "expected the instances.json of the same release")
    sentences = ref.objects("sentences")
    if not sentences:
        raise ref.wrong("'sentences' is missing or empty", 'expected a list like [{"sent_id": 1, "sent": "left dog"}]')
    shown = pictures[image]
    return [
        Expression(
            key=str(sentence.get("sent_id", int)),
            phrase=sentence.get("sent", str),
            split=ref.get("split", str),
            picture=inside(shown.get("file_name", str), shown.place),
            size=(shown.count("width"), shown.count("height")),
            box=_corners(places[annotation]),
        )
        for sentence in sentences
    ]


def _corners(annotation: Entry) -> tuple[float, float, float, float]:
    given = annotation.get("bbox", list)
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(given) != 4 or len(numbers) != 4 or min(numbers[2:]) <= 0:
        raise annotation.wrong(f"'bbox' is {short(given)}", "expected [x, y, width, height] in pixels")
    x, y, wide, high = numbers
    return (x, y, x + wide, y + high)
