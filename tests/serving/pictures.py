"""Screenshots for docs/page.md from real runs of ``mini``: ``python -m tests.serving.pictures`` after a change of the page or weights."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

import unmask
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

from ..pages import ROOT
from .browser import launched, panel

FOLDER = ROOT / "docs" / "pictures"
MOST_BYTES = 60_000  # of a picture
PATIENCE = 300_000  # milliseconds
PROMPTS = ("a red apple left of a cat", "three blue cars")
SEEDS = range(1, 31)
expect.set_options(timeout=PATIENCE)


def drawing(browser: Browser, url: str) -> bytes:
    """A generation halfway, with its plan."""
    with visit(browser, f"{url}/#draw?prompt=two+yellow+cups&reflect=1&seed=11", (1280, 860)) as page:
        back(run(page, "draw"), 8)
        return page.screenshot()


def boxes(browser: Browser, url: str) -> bytes:
    """Boxes for phrases in an image."""
    with visit(browser, url, (1280, 860), dark=True) as page:
        look = panel(page, "Ground")
        look.get_by_label("Example image: animals").click()
        look.locator("textarea").first.fill("the dog\nthe umbrella\nthe elephant")
        run(page, "ground", "boxes")
        look.get_by_role("button", name="2 the umbrella", exact=True).click()
        look.locator("h1").click()
        return page.screenshot()


def telephone(browser: Browser, url: str) -> bytes:
    """A small screen, dark theme."""
    with visit(
        browser, f"{url}/#draw?prompt=two+red+apples&reflect=1&seed=10", (375, 812), dark=True, scale=1.5
    ) as page:
        back(run(page, "draw"), 7)
        page.evaluate("scrollTo(0, 210)")
        return page.screenshot()


def attempts(browser: Browser, url: str, model: Any) -> bytes:
    """Two attempts and their critiques, large enough to read."""
    prompt, seed = rejected_once(model)
    asked = urlencode({"prompt": prompt, "plan": "true", "reflect": 4, "seed": seed})
    with visit(browser, f"{url}/#draw?{asked}", (1100, 720), scale=1.5) as page:
        draw = run(page, "draw")
        expect(draw.locator(".card")).to_have_count(2)
        expect(draw.locator(".card img")).to_have_count(2)
        stage = draw.locator(".stage")
        stage.evaluate(
            "stage => (stage.style.alignSelf = 'start')"
        )  # as high as its content, not as the settings beside it
        return stage.screenshot()


def rejected_once(model: Any) -> tuple[str, int]:
    """A prompt and a seed for which the model rejects the first image and accepts the second."""
    for seed, prompt in itertools.product(SEEDS, PROMPTS):
        rounds = model.generate(prompt, seed=seed, plan=True, attempts=4)[0].attempts
        if [r.accepted for r in rounds] == [False, True]:
            return prompt, seed
    raise SystemExit(f"no image took two attempts in {len(SEEDS) * len(PROMPTS)}; add prompts or seeds")


@contextmanager
def visit(
    browser: Browser, url: str, size: tuple[int, int], *, dark: bool = False, scale: float = 1.0
) -> Iterator[Page]:
    """A page in its own window, without animations."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    expect(page.get_by_role("tab", name="Draw")).to_be_visible()
    yield page
    context.close()


def run(page: Page, name: str, said: str = "Done") -> Locator:
    """Run, wait for the end, and remove the focus."""
    place = page.locator(f"#panel-{name}")
    place.locator("textarea").first.press("Control+Enter")
    expect(place.locator(".line")).to_contain_text(said)
    place.locator("h1").click()
    return place


def back(place: Locator, steps: int) -> None:
    """Move the slider back by ``steps``."""
    slider = place.get_by_role("slider", name="Step")
    slider.press("End")
    for _ in range(steps):
        slider.press("ArrowLeft")
    place.locator("h1").click()


def save(name: str, png: bytes) -> None:
    """Save as WebP of at most ``MOST_BYTES``."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in range(90, 40, -5):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    else:
        raise SystemExit(f"{name} is larger than {MOST_BYTES} bytes at any quality; crop the screenshot")
    (FOLDER / name).write_bytes(buffer.getvalue())
    print(f"{FOLDER / name}: {image.width} x {image.height}, quality {quality}, {buffer.tell():,} bytes")


def main() -> None:
    model = unmask.load("mini")
    with launched() as browser, Server(Service(model, name="mini"), listen("127.0.0.1", 0)) as server:
        save("drawing.webp", drawing(browser, server.url))
        save("boxes.webp", boxes(browser, server.url))
        save("telephone.webp", telephone(browser, server.url))
        save("attempts.webp", attempts(browser, server.url, model))


if __name__ == "__main__":
    main()
