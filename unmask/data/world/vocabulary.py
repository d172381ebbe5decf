"""Nouns, colours, backgrounds and levels of the synthetic world.

Object names follow GenEval's list wherever an emoji of that object exists, so that GenEval prompts with these nouns can be
used unchanged. Public idea: ``LEVELS["grid"]`` and ``LEVELS["free"]``.
"""

from __future__ import annotations

from dataclasses import dataclass

# name -> (plural, emoji). The order is the order of the sprite sheet and of the judge's classes: append only.
CLASSES: dict[str, tuple[str, str]] = {
    "dog": ("dogs", "🐕"),
    "cat": ("cats", "🐈"),
    "horse": ("horses", "🐎"),
    "elephant": ("elephants", "🐘"),
    "bird": ("birds", "🐦"),
    "bear": ("bears", "🐻"),
    "apple": ("apples", "🍎"),
    "banana": ("bananas", "🍌"),
    "pizza": ("pizzas", "🍕"),
    "carrot": ("carrots", "🥕"),
    "cake": ("cakes", "🎂"),
    "car": ("cars", "🚗"),
    "bus": ("buses", "🚌"),
    "airplane": ("airplanes", "✈"),
    "boat": ("boats", "⛵"),
    "bicycle": ("bicycles", "🚲"),
    "clock": ("clocks", "⏰"),
    "book": ("books", "📕"),
    "chair": ("chairs", "🪑"),
    "cup": ("cups", "☕"),
    "umbrella": ("umbrellas", "☂"),
    "backpack": ("backpacks", "🎒"),
    "scissors": ("scissors", "✂"),
    "traffic light": ("traffic lights", "🚦"),
    # -- the first 24 are the grid level --
    "motorcycle": ("motorcycles", "🏍"),
    "train": ("trains", "🚆"),
    "truck": ("trucks", "🚚"),
    "stop sign": ("stop signs", "🛑"),
    "sheep": ("sheep", "🐑"),
    "cow": ("cows", "🐄"),
    "zebra": ("zebras", "🦓"),
    "giraffe": ("giraffes", "🦒"),
    "handbag": ("handbags", "👜"),
    "tie": ("ties", "👔"),
    "suitcase": ("suitcases", "🧳"),
    "frisbee": ("frisbees", "🥏"),
    "skis": ("skis", "🎿"),
    "sports ball": ("sports balls", "⚽"),
    "kite": ("kites", "🪁"),
    "skateboard": ("skateboards", "🛹"),
    "tennis racket": ("tennis rackets", "🎾"),
    "bottle": ("bottles", "🍾"),
    "wine glass": ("wine glasses", "🍷"),
    "fork": ("forks", "🍴"),
    "knife": ("knives", "🔪"),
    "spoon": ("spoons", "🥄"),
    "bowl": ("bowls", "🥣"),
    "sandwich": ("sandwiches", "🥪"),
    "broccoli": ("broccoli", "🥦"),
    "hot dog": ("hot dogs", "🌭"),
    "donut": ("donuts", "🍩"),
    "couch": ("couches", "🛋"),
    "potted plant": ("potted plants", "🪴"),
    "bed": ("beds", "🛏"),
    "toilet": ("toilets", "🚽"),
    "tv": ("tvs", "📺"),
    "laptop": ("laptops", "💻"),
    "cell phone": ("cell phones", "📱"),
    "vase": ("vases", "🏺"),
    "teddy bear": ("teddy bears", "🧸"),
    "toothbrush": ("toothbrushes", "🪥"),
}
CLASS_NAMES: tuple[str, ...] = tuple(CLASSES)

# Recolourings: sRGB of the middle tone. The natural colour (no recolouring) is the empty string. Append only, as above.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 30, 36),
    "yellow": (246, 212, 20),
    "green": (34, 160, 50),
    "blue": (32, 92, 226),
    "purple": (128, 38, 176),
    "pink": (255, 130, 190),
    # -- the first six are the grid level --
    "orange": (250, 134, 10),
    "brown": (128, 74, 34),
    "black": (44, 44, 48),
    "white": (238, 238, 240),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

# name -> (phrase, top colour, bottom colour); uniform if both are equal.
BACKGROUNDS: dict[str, tuple[str, tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ("on a white background", (250, 250, 250), (250, 250, 250)),
    "grey": ("on a grey background", (150, 152, 156), (150, 152, 156)),
    "sky": ("on a sky background", (176, 220, 250), (176, 220, 250)),
    "sand": ("on a sand background", (236, 214, 160), (236, 214, 160)),
    # -- the first four are the grid level --
    "grass": ("on a grass background", (150, 200, 110), (110, 170, 80)),
    "night": ("on a night background", (16, 20, 52), (44, 50, 96)),
    "sunset": ("on a sunset background", (250, 160, 90), (150, 80, 130)),
    "sea": ("on a sea background", (120, 200, 220), (30, 100, 160)),
    "mint": ("on a mint background", (190, 240, 215), (190, 240, 215)),
}
BACKGROUND_NAMES: tuple[str, ...] = tuple(BACKGROUNDS)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A subset of the world and its placement rules.

    ``lattice``: positions and sizes are multiples of 1 / lattice; 0: any position.
    ``sizes``: object side as a fraction of the picture, from which grid scenes draw (free scenes draw between first and last).
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    lattice: int
    sizes: tuple[float, ...]
    most: int = 4


LEVELS: dict[str, Level] = {
    "grid": Level(
        name="grid",
        classes=CLASS_NAMES[:24],
        colours=COLOUR_NAMES[:6],
        backgrounds=BACKGROUND_NAMES[:4],
        lattice=4,
        sizes=(0.5, 0.25),
    ),
    # The same pixels per object at half the image side (64 px instead of 128): the first stage of image training.
    "grid_half": Level(
        name="grid_half",
        classes=CLASS_NAMES[:24],
        colours=COLOUR_NAMES[:6],
        backgrounds=BACKGROUND_NAMES[:4],
        lattice=2,
        sizes=(1.0, 0.5),
        most=4,
    ),
    "free": Level(
        name="free",
        classes=CLASS_NAMES,
        colours=COLOUR_NAMES,
        backgrounds=BACKGROUND_NAMES,
        lattice=0,
        sizes=(0.2, 0.5),
        most=6,
    ),
}
