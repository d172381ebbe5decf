"""A trace as one HTML page with everything in it. Public idea: ``page(trace) -> str``; ``write(trace, folder)`` also writes trace.json."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from pathlib import Path

from PIL import Image

from unmask.analysis.trace import Run, Trace
from unmask.json_types import Json
from unmask.writing import write_text

PAGE, FIGURES = "trace.html", "trace.json"
_FRAMES = 24  # of a run at most, evenly spaced
_WIDE, _HIGH = 640, 150

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trace: {{ about }}</title>
<style>
:root { --paper: #fbfaf7; --ink: #1b1c22; --soft: #5d606c; --line: #e4e2dc; --accent: 52 70 211; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #121317; --ink: #ecebe6; --soft: #a2a4b0; --line: #2d2f38; --accent: 152 164 255; } }
body { max-width: 1080px; margin: 0 auto; padding: 24px 16px 60px; background: var(--paper); color: var(--ink); font: 15px/1.5 sans-serif; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 20px; } h3 { font-size: 15px; }
p, figcaption, caption { color: var(--soft); } .said { color: var(--ink); font-size: 20px; white-space: pre-wrap; }
.film, .maps { display: flex; flex-wrap: wrap; gap: 14px; } figure { margin: 0; } figcaption { font-size: 12px; max-width: 224px; }
.film img { display: block; width: 104px; border-radius: 6px; image-rendering: auto; } .film p { max-width: 480px; margin: 0; }
.map { border-spacing: 0; width: 224px; height: 224px; table-layout: fixed; } .map td { padding: 0; font-size: 9px; text-align: center; }
.tokens span { display: inline-block; margin: 1px; padding: 1px 5px; border-radius: 5px; white-space: pre; }
.tokens .again { outline: 2px dotted currentcolor; } svg { max-width: 100%; height: auto; }
details { margin-top: 12px; } .steps { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.steps td, .steps th { padding: 2px 12px; border-bottom: 1px solid var(--line); text-align: right; }
</style></head><body>
<h1>How this sample came about</h1>
<p>{{ about }}</p>
{% if picture %}<figure><img src="{{ picture }}" width="256" alt="The result"></figure>{% endif %}
{% if text %}<p class="said">{{ text }}</p>{% endif %}
{% for run in runs %}
<section><h2>Run {{ loop.index }}: {{ run.kind }}, {{ run.count }} tokens in {{ run.steps | length }} steps</h2>
{% if run.plot %}<h3>Mean entropy of the masked tokens before each step, in nats</h3>
<svg viewBox="0 0 {{ wide }} {{ high }}" width="{{ wide }}" role="img" aria-label="From {{ run.first }} to {{ run.last }} nats">
<polyline points="{{ run.plot }}" fill="none" stroke="rgb(var(--accent))" stroke-width="2"/>
<text x="4" y="14" font-size="12" fill="currentcolor">{{ run.most }}</text>
<text x="4" y="{{ high - 4 }}" font-size="12" fill="currentcolor">0</text></svg>{% endif %}
{% if run.maps %}<div class="maps">{% for name, note, rows in run.maps %}
<figure><h3>{{ name }}</h3><table class="map">
{% for row in rows %}<tr>{% for cell in row %}
<td style="background: rgb(var(--accent) / {{ cell.share }})" title="{{ cell.title }}">{{ cell.text }}</td>
{% endfor %}</tr>{% endfor %}</table><figcaption>{{ note }}</figcaption></figure>{% endfor %}</div>
{% else %}<h3>Tokens: the later a token was unmasked, the darker; dotted where it was written again</h3><p class="tokens said">
{% for t in run.tokens %}<span class="{{ 'again' if t.rewrites else '' }}" style="background: rgb(var(--accent) / {{ t.share }})"
 title="{{ t.title }}">{{ t.token }}</span>{% endfor %}</p>{% endif %}
<h3>Step by step</h3><div class="film">{% for frame in run.film %}<figure>
{% if frame.image %}<img src="{{ frame.image }}" alt="">{% else %}<p>{{ frame.text }}</p>{% endif %}
<figcaption>{{ frame.caption }}</figcaption></figure>{% endfor %}</div>
<details><summary>All steps</summary><table class="steps">
<tr><th>step</th><th>unmasked</th><th>written again</th><th>left</th><th>entropy</th></tr>
{% for s in run.steps %}<tr><td>{{ s.step }}</td><td>{{ s.unmasked }}</td><td>{{ s.rewritten }}</td><td>{{ s.left }}</td>
<td>{{ "-" if s.entropy is none else "%.3f" | format(s.entropy) }}</td></tr>{% endfor %}</table></details></section>
{% endfor %}
<p>Entropies and probabilities are those of the prediction from which the step drew, guidance and constraints included.</p>
</body></html>
"""


def page(trace: Trace) -> str:
    """The HTML page; nothing is fetched."""
    from jinja2 import Environment

    result = trace.result[0] if isinstance(trace.result, list) and trace.result else trace.result
    image, text = getattr(result, "image", None), getattr(result, "text", "")
    return (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            about=trace.about,
            picture=_embedded(image) if isinstance(image, Image.Image) else None,
            text=text,
            runs=[_shown(run) for run in trace.runs],
            wide=_WIDE,
            high=_HIGH,
        )
    )


def write(trace: Trace, folder: Path) -> None:
    """trace.html and trace.json in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAGE, page(trace))
    write_text(folder / FIGURES, json.dumps(trace.to_json(), indent=1, allow_nan=False))


def _shown(run: Run) -> Json:
    figures = run.to_json()
    steps, tokens = figures["steps"], figures["tokens"]
    for token in tokens:
        token["share"] = f"{0.08 + 0.6 * token['step'] / max(1, run.steps):.2f}"
        token["title"] = _told(token)
    means = [s["entropy"] for s in steps if s["entropy"] is not None]
    most = max(means, default=0.0)
    points = [
        f"{i * _WIDE / max(1, len(means) - 1):.1f},{_HIGH - 4 - (_HIGH - 24) * v / (most or 1):.1f}"
        for i, v in enumerate(means)
    ]
    ends = {"first": _said(means[0]), "last": _said(means[-1])} if means else {}
    every = max(1, math.ceil(len(run.shown) / _FRAMES))
    kept = sorted({*range(0, len(run.shown), every), len(run.shown) - 1})
    return {
        "kind": run.kind,
        "steps": steps,
        "tokens": _gathered(tokens),
        "count": len(tokens),
        "plot": " ".join(points) if len(points) > 1 else "",
        "most": _said(most),
        **ends,
        "maps": _maps(run, tokens),
        "film": [_frame(run.shown[i], steps[i - 1] if i else None) for i in kept],
    }


def _maps(run: Run, tokens: list[Json]) -> list[tuple[str, str, list[list[Json]]]]:
    """Order, entropy and probability of a picture's tokens."""
    if run.grid is None:
        return []
    found = []
    for name, key, note in (
        ("Order", "step", "the step that unmasked each token; the later, the darker"),
        ("Entropy", "entropy", "of the prediction from which each token was drawn, in nats; darker is less sure"),
        ("Probability", "probability", "of the token that was drawn; darker is more probable"),
    ):
        most = max((t[key] or 0 for t in tokens), default=0) or 1
        cells = [
            {"share": f"{(t[key] or 0) / most:.2f}", "title": t["title"], "text": t["step"] if key == "step" else ""}
            for t in tokens
        ]
        rows, columns = run.grid
        found.append((name, note, [cells[r * columns : (r + 1) * columns] for r in range(rows)]))
    return found


def _frame(shown: Image.Image | str, step: Json | None) -> Json:
    again = f", {step['rewritten']} written again" if step and step["rewritten"] else ""
    caption = "before" if step is None else f"step {step['step']}: {step['unmasked']} unmasked{again}"
    if isinstance(shown, Image.Image):
        return {"image": _embedded(shown), "caption": caption}
    return {"image": None, "text": _REPEATED.sub(_counted, shown), "caption": caption}


_REPEATED = re.compile(r"(?<!\S)(\S+)(?: \1(?!\S)){3,}")


def _counted(found: re.Match[str]) -> str:
    """The same token several times, as one token and a number."""
    return f"{found[1]} × {found[0].count(' ') + 1}"


def _gathered(tokens: list[Json]) -> list[Json]:
    """Tokens for people: the same one several times in a row, unmasked at the same step, is shown once with its number."""
    found: list[Json] = []
    for _, some in itertools.groupby(tokens, lambda t: (t["token"], t["step"], t["rewrites"])):
        same = list(some)
        found += [{**same[0], "token": f"{same[0]['token']} × {len(same)}"}] if len(same) > 3 else same
    return found


def _told(token: Json) -> str:
    if not token["step"]:
        return f"{token['token']}: given"
    sure = f"p {_said(token['probability'])}, entropy {_said(token['entropy'])} nats"
    again = f", written again {token['rewrites']} times" if token["rewrites"] else ""
    return f"{token['token']}: step {token['step']}, {sure}{again}"


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _embedded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
