"""The words of the pocket world: what there is in it, and what people call it.

Knows neither pictures nor models. The first name of a thing is the one that scripts and captions use; the others are
understood. A list's order is the order of the world's numbers.
"""

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "navy", "azure"),
    "yellow": ("yellow", "golden", "lemon"),
    "orange": ("orange", "amber", "tangerine"),
    "purple": ("purple", "violet", "lilac"),
    "pink": ("pink", "rose", "magenta"),
    "cyan": ("cyan", "turquoise", "teal"),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc", "disk", "dot"),
    "square": ("square", "box", "block", "cube"),
    "triangle": ("triangle", "pyramid", "wedge"),
    "star": ("star", "starfish"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop", "wheel", "donut"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "middle-sized"),
    "large": ("large", "big", "huge", "giant"),
}
# Each name with the words before it, since "in the night" and "over the sea" are what people say.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sky": ("over the sky", "over a blue sky", "in the sky", "across the sky", "in the air", "among the clouds"),
    "sea": ("over the sea", "across the sea", "over the ocean", "on the water", "over the waves", "over a blue sea",
            "at sea", "across a lake"),
    "grass": ("over the grass", "on the grass", "across a meadow", "over a green field", "in a meadow", "on a lawn"),
    "sand": ("over the sand", "on the sand", "in the desert", "across the desert", "on a beach", "over the dunes"),
    "night": ("in the night", "at night", "in the dark", "in space", "under a night sky", "in the night sky"),
    "snow": ("in the snow", "over the snow", "on the ice", "in winter", "over a snowy field", "on white snow"),
}  # fmt: skip
# Each name with verb phrases: the -ing form first, then the third person.
MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("moving left", "moves left"), ("going to the left", "goes to the left"),
             ("flying left", "flies left"), ("rolling to the left", "rolls to the left"),
             ("drifting leftwards", "drifts leftwards")),
    "right": (("moving right", "moves right"), ("going to the right", "goes to the right"),
              ("flying right", "flies right"), ("rolling to the right", "rolls to the right"),
              ("drifting rightwards", "drifts rightwards")),
    "up": (("moving up", "moves up"), ("rising", "rises"), ("climbing", "climbs"), ("flying up", "flies up"),
           ("floating upwards", "floats upwards"), ("going up", "goes up")),
    "down": (("moving down", "moves down"), ("falling", "falls"), ("sinking", "sinks"), ("dropping", "drops"),
             ("coming down", "comes down"), ("going down", "goes down")),
    "toward": (("moving toward us", "moves toward us"), ("coming closer", "comes closer"),
               ("growing", "grows"), ("approaching", "approaches"), ("coming towards the camera",
               "comes towards the camera"), ("flying at us", "flies at us")),
    "still": (("standing still", "stands still"), ("resting", "rests"), ("waiting", "waits"),
              ("staying", "stays"), ("not moving", "does not move"), ("sitting", "sits")),
}  # fmt: skip


def is_held_out(colour: int, shape: int, background: int) -> bool:
    """Whether no model ever sees this combination in training: a tenth of them, kept to measure quality on."""
    return (colour + 3 * shape + 5 * background) % 10 == 0


def vocabulary() -> set[str]:
    """Every word that occurs above, in lower case, without hyphens and spaces."""
    phrases = [name for names in (COLOURS, SHAPES, SIZES, BACKGROUNDS) for group in names.values() for name in group]
    phrases += [form for group in MOTIONS.values() for forms in group for form in forms]
    return {word for phrase in phrases for word in phrase.replace("-", " ").split()}
