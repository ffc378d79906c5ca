"""The language of the pocket world: what its pictures and scripts say, and how people may ask for them.

Everything is drawn from a `random.Random` and the words of `words`. Knows neither pixels nor tokens.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from halfreel_pocket.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, is_held_out, vocabulary

LARGEST_SCENE_COUNT = 8
_SCENE_OPENINGS = ("", "Then ", "Now ", "Next ")
# Of a scene whose idea tells none, by its number.
_FREE_MOTIONS = ("right", "left", "up", "down")
SCENE_SECONDS = 2  # 16 frames at 8 frames a second: one clip


@dataclass(frozen=True)
class Scene:
    """One scene of a script, by the first names of things in `words`."""

    size: str
    colour: str
    shape: str
    background: str
    motion: str
    seconds: int = SCENE_SECONDS

    @property
    def is_held_out(self) -> bool:
        """Whether training must not show this look."""
        return is_held_out(
            list(COLOURS).index(self.colour),
            list(SHAPES).index(self.shape),
            list(BACKGROUNDS).index(self.background),
        )


@dataclass(frozen=True)
class Request:
    """An idea as a person writes it, the number of scenes asked for (0: any), and the script that answers it."""

    idea: str
    scene_count: int
    scenes: tuple[Scene, ...]
    script: str


def random_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Any scene of the world that training may show, or, `held_out`, one that it may not."""
    while True:
        size, colour, shape, background, motion = (
            rng.choice(list(names)) for names in (SIZES, COLOURS, SHAPES, BACKGROUNDS, MOTIONS)
        )
        scene = Scene(size, colour, shape, background, motion)
        if scene.is_held_out is held_out:
            return scene


def picture(scene: Scene) -> str:
    """What the keyframe model is told, in the one form that scripts use."""
    background, (moving, _) = BACKGROUNDS[scene.background][0], MOTIONS[scene.motion][0]
    return f"a {scene.size} {scene.colour} {scene.shape} {background}, {moving}"


def caption(scene: Scene, rng: random.Random) -> str:
    """What a person may tell the keyframe model: `picture`, or freer words that may leave things out."""
    if rng.random() < 0.5:
        return picture(scene)
    return _clause(scene, _Told.some(rng), rng)


def caption_words() -> set[str]:
    """Every word that `caption` may use, in lower case."""
    loose = {form for forms in _LOOSE_MOVES for form in forms}
    return vocabulary() | loose | {*_ADJECTIVES, *_ADVERBS, "a", "an", "the", "one", "that", "which", "is"}


def script_of(scenes: Sequence[Scene]) -> str:
    """The script of `scenes` as JSON without white space, keys in the gateway's order."""
    written = []
    for number, scene in enumerate(scenes):
        # No choice is left to chance: where two words are as likely, rounding would decide between them.
        opening = _SCENE_OPENINGS[number % len(_SCENE_OPENINGS)]
        article = "A" if not opening else "a"
        verb = MOTIONS[scene.motion][number % len(MOTIONS[scene.motion])][1]
        where = BACKGROUNDS[scene.background][0]
        written.append(
            {
                "narration": f"{opening}{article} {scene.size} {scene.colour} {scene.shape} {verb} {where}.",
                "picture": picture(scene),
                "seconds": scene.seconds,
                "motion": scene.motion,
            }
        )
    return json.dumps({"title": _title(scenes), "scenes": written}, separators=(",", ":"))


def _title(scenes: Sequence[Scene]) -> str:
    first, last = (f"{scene.colour} {scene.shape}" for scene in (scenes[0], scenes[-1]))
    if first == last:
        return f"The {first}"
    return f"The {first} and the {last}" if len(scenes) == 2 else f"From the {first} to the {last}"


def random_request(rng: random.Random, *, held_out: bool = False) -> Request:
    """An idea and the script that answers it; `held_out`: of looks that training never shows, all told."""
    kind = 0.0 if held_out else rng.random()
    if kind < 0.84:
        idea, scenes = _asked(rng, held_out=held_out)
    elif kind < 0.92:
        idea, scenes = _unknown_subjects(rng)
    elif kind < 0.99:
        idea, scenes = _foreign(rng), [random_scene(rng) for _ in range(rng.randint(1, 3))]
    else:
        idea, scenes = _long(rng)
    scene_count = 0
    if not held_out and rng.random() < 0.4:
        scene_count = len(scenes) if rng.random() < 0.6 else rng.randint(1, LARGEST_SCENE_COUNT)
        scenes = _stretched(scenes, scene_count)
    return Request(idea, scene_count, tuple(scenes), script_of(scenes))


def _stretched(scenes: list[Scene], count: int) -> list[Scene]:
    """The first `count` scenes; where there are fewer, the same things move on in other ways."""
    scenes = scenes[:count]
    asked = len(scenes)
    for number in range(count - asked):
        before = scenes[number]
        motions = list(MOTIONS)
        scenes.append(replace(before, motion=motions[(motions.index(before.motion) + 1) % len(motions)]))
    return scenes


# ---- How people ask

_OPENINGS = (
    "", "", "", "", "", "", "A film about ", "a film of ", "Make a film of ", "I want to see ", "Show me ",
    "Please show ", "Make a short video: ", "film: ", "A story about ", "Once upon a time, ", "Let there be ",
    "Imagine ", "a movie with ", "Can you make a video where ", "My idea: ", "We see ", "Draw ", "Animate ",
    "Create a clip in which ", "a scene with ",
)  # fmt: skip
_JOINTS = (
    ", then ", ", then ", " then ", ", and then ", " and then ", ". Then ", "; then ", ", after that ",
    ". After that, ", ", followed by ", " followed by ", ". Next, ", "; ", ", ", " and ", ", and ", ", next ",
    " and finally ", ". Later ", "\n", ". ", " before ", " and after that ", ", later ", " - then ", " -> ",
    ", and at last ", " / ",
)  # fmt: skip
_CLOSINGS = ("", "", "", "", ".", ".", "!", " please", ". Thanks!", "...", ". The end.", ", please.")
_ADJECTIVES = (
    "happy", "shiny", "beautiful", "lonely", "brave", "nice", "bright", "old", "simple", "magic", "lovely",
    "sad", "smooth", "single", "strange", "friendly", "glowing", "plain", "perfect", "fast", "slow", "quiet",
)  # fmt: skip
_ADVERBS = ("slowly", "quickly", "gently", "quietly", "happily", "smoothly", "far", "fast", "softly")
_LOOSE_MOVES = (
    ("moving", "moves"), ("flying", "flies"), ("travelling", "travels"), ("rolling", "rolls"), ("floating", "floats"),
    ("gliding", "glides"), ("sailing", "sails"),
)  # fmt: skip
_SUBJECTS = (
    "cat", "dog", "dragon", "robot", "boat", "bird", "knight", "king", "queen", "car", "train", "horse", "fish",
    "whale", "ship", "wizard", "girl", "boy", "man", "woman", "child", "tree", "house", "castle", "rocket",
    "alien", "bear", "fox", "mouse", "lion", "tiger", "bee", "butterfly", "elephant", "pirate", "princess",
    "monster", "ghost", "clown", "baker", "detective", "teacher", "farmer", "sailor", "painter", "astronaut",
    "penguin", "snowman", "turtle", "owl", "wolf", "balloon", "kite", "plane", "bicycle", "guitar", "piano",
    "apple", "banana", "cake", "river", "mountain", "city",
)  # fmt: skip
_DEEDS = (
    "sings a song", "falls in love", "finds a treasure", "goes home", "learns to dance", "fights a dragon",
    "eats a cake", "dreams of the future", "loses a hat", "meets a friend", "builds a house", "reads a book",
    "saves the world", "sleeps", "walks", "runs", "jumps", "waits for the bus", "tells a joke",
    "goes on a journey", "bakes bread", "paints a picture",
)  # fmt: skip
_FOREIGN = (
    "ein roter Kreis fliegt über den Himmel", "Ein grünes Quadrat im Schnee, dann ein blauer Stern",
    "un cercle rouge sur la mer", "un carré vert dans la neige", "un círculo rojo en el cielo",
    "una estrella azul de noche", "красный круг летит по небу", "зелёный квадрат на снегу",
    "一个红色的圆在天空中移动", "雪の中の緑の四角", "빨간 동그라미가 하늘을 날아간다",
    "دائرة حمراء تتحرك في السماء", "एक लाल गोला आसमान में", "kırmızı bir daire", "czerwone koło nad morzem",
    "um quadrado verde na neve", "en röd cirkel", "een rode cirkel boven de zee", "κόκκινος κύκλος",
    "hình tròn đỏ trên bầu trời", "🔴 ☁️ ➡️", "🟩❄️", "🎬🎬🎬", "⭐🌙", "🚀🚀 🌌",
)  # fmt: skip
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class _Told:
    """What of a scene is said, and how freely."""

    size: bool
    background: bool
    motion: bool
    synonyms: bool
    asides: bool

    @classmethod
    def some(cls, rng: random.Random) -> "_Told":
        return cls(
            size=rng.random() < 0.4,
            background=rng.random() < 0.85,
            motion=rng.random() < 0.75,
            synonyms=rng.random() < 0.5,
            asides=rng.random() < 0.2,
        )


def _asked(rng: random.Random, *, held_out: bool) -> tuple[str, list[Scene]]:
    """One to four clauses of a thing each; what a clause leaves out is as before, or as the model likes."""
    scenes: list[Scene] = []
    clauses: list[str] = []
    for number in range(rng.choice((1, 1, 2, 2, 2, 2, 3, 3, 3, 4))):
        told = _Told.some(rng)
        if held_out:
            told = replace(told, background=True, motion=True)
        scene = random_scene(rng, held_out=held_out)
        if not told.size:
            scene = replace(scene, size="large")
        if not told.background:  # the place of the clause before is meant
            scene = replace(scene, background=scenes[-1].background if number else "sky")
        if not told.motion:
            scene = replace(scene, motion=_FREE_MOTIONS[number % len(_FREE_MOTIONS)])
        if scene.is_held_out is not held_out:
            scene = random_scene(rng, held_out=held_out)
            told = replace(told, size=True, background=True, motion=True)
        repeats = number > 0 and not held_out and rng.random() < 0.12
        if repeats:
            scene = replace(scenes[-1], motion=scene.motion)
            clauses.append(_again(scene, rng))
        else:
            clause = _clause(scene, told, rng)
            if rng.random() < 0.05:
                scene = replace(scene, seconds=rng.randint(1, 8))
                amount = rng.choice((str(scene.seconds), _NUMBERS[scene.seconds - 1]))
                clause += f" for {amount} second{'s' if scene.seconds > 1 else ''}"
            clauses.append(clause)
        scenes.append(scene)
    return _sentence(clauses, rng), scenes


def _sentence(clauses: list[str], rng: random.Random) -> str:
    style = rng.random()
    if style < 0.06:
        text = " ".join(f"{number}{rng.choice(').:')} {clause}" for number, clause in enumerate(clauses, 1))
    elif style < 0.12 and len(clauses) > 1:
        orders = ("first", "second", "third", "fourth")
        text = ", ".join(f"{order} {clause}" for order, clause in zip(orders, clauses, strict=False))
    elif style < 0.18 and len(clauses) > 1:
        text = ("First " if rng.random() < 0.5 else "first, ") + clauses[0]
        text += "".join(rng.choice((", then ", ". Then ", ", next ")) + clause for clause in clauses[1:])
    else:
        joint = rng.choice(_JOINTS)
        text = rng.choice(_OPENINGS) + clauses[0]
        for clause in clauses[1:]:
            text += joint + clause
            if rng.random() < 0.5:
                joint = rng.choice(_JOINTS)
    text += rng.choice(_CLOSINGS)
    case = rng.random()
    if case < 0.08:
        return text.upper()
    if case < 0.14:
        return text.lower()
    return text[0].upper() + text[1:] if case < 0.57 else text


def _clause(scene: Scene, told: _Told, rng: random.Random) -> str:
    def name(names: dict[str, tuple[str, ...]], first: str) -> str:
        return rng.choice(names[first]) if told.synonyms else first

    thing = [name(COLOURS, scene.colour), name(SHAPES, scene.shape)]
    if told.size:
        thing.insert(0, name(SIZES, scene.size))
    if told.asides:
        thing.insert(rng.randint(0, len(thing) - 1), rng.choice(_ADJECTIVES))
    article = rng.choices((_article(thing[0]), "the", "one", ""), (8, 1.5, 0.5, 1))[0]
    subject = " ".join([article, *thing]).strip()
    moves = [""]
    if told.motion:
        form = rng.choice(MOTIONS[scene.motion]) if told.synonyms else MOTIONS[scene.motion][0]
        moves = [form[0], form[1], f"that {form[1]}", f"which is {form[0]}"]
    elif rng.random() < 0.4:
        moves = list(rng.choice(_LOOSE_MOVES))
    move = rng.choices(moves, (5, 5, 1, 0.5)[: len(moves)])[0]
    if move and told.asides and rng.random() < 0.5:
        move += " " + rng.choice(_ADVERBS)
    if not told.background:
        return f"{subject} {move}".strip()
    wheres = BACKGROUNDS[scene.background]
    where = rng.choice(wheres) if told.synonyms or rng.random() < 0.3 else wheres[0]
    order = rng.random()
    if order < 0.08:
        return f"{where}, {subject} {move}".strip().rstrip(",")
    if order < 0.12:
        return ", ".join(part for part in (subject, where.split()[-1], move) if part)
    if order < 0.45 or not move:
        return f"{subject} {where}{', ' if rng.random() < 0.2 and move else ' '}{move}".strip()
    return f"{subject} {move} {where}"


def _again(scene: Scene, rng: random.Random) -> str:
    """The thing of the clause before does something else."""
    subject = rng.choice(("it", "it", f"the {scene.shape}", f"the {scene.colour} {scene.shape}", "the same one"))
    return f"{subject} {rng.choice(MOTIONS[scene.motion])[1]}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _unknown_subjects(rng: random.Random, clause_count: int = 0) -> tuple[str, list[Scene]]:
    """A story of things that the world does not have: shapes play them, in the places that it names."""
    scenes, clauses = [], []
    for number in range(clause_count or rng.choice((1, 1, 2, 2, 3))):
        scene = replace(random_scene(rng), size="large")
        subject = rng.choice(_SUBJECTS) if rng.random() < 0.8 else _gibberish(rng)
        told_background, told_colour, told_motion = rng.random() < 0.5, rng.random() < 0.2, rng.random() < 0.4
        if not told_motion:
            scene = replace(scene, motion=_FREE_MOTIONS[number % len(_FREE_MOTIONS)])
        if subject in _SUBJECTS:  # the same thing is always played by the same shape
            part = _SUBJECTS.index(subject)
            scene = replace(scene, shape=list(SHAPES)[part % len(SHAPES)])
            if not told_colour:
                scene = replace(scene, colour=list(COLOURS)[part % len(COLOURS)])
            while scene.is_held_out:
                scene = replace(scene, background=rng.choice(list(BACKGROUNDS)))
        words = [rng.choice(("a", "the", "my", "one")), subject]
        if rng.random() < 0.3:
            words.insert(1, rng.choice(_ADJECTIVES))
        if told_colour:
            words.insert(1, rng.choice(COLOURS[scene.colour]))
        words.append(rng.choice(MOTIONS[scene.motion])[1] if told_motion else rng.choice(_DEEDS))
        if told_background:
            words.append(rng.choice(BACKGROUNDS[scene.background]))
        clauses.append(" ".join(words))
        scenes.append(scene)
    return _sentence(clauses, rng), scenes


def _long(rng: random.Random) -> tuple[str, list[Scene]]:
    """Up to about 2,000 characters: a story of many things, of which a script has only the first few, or noise."""
    if rng.random() < 0.5:
        idea, scenes = _unknown_subjects(rng, rng.randint(10, 40))
        return idea, scenes[:LARGEST_SCENE_COUNT]
    words = " ".join(_foreign(rng) for _ in range(rng.randint(5, 20)))
    return words[:2000], [random_scene(rng) for _ in range(rng.randint(1, 3))]


def _gibberish(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 4))
    ) + rng.choice(("", "n", "s", "x", "7"))


def _foreign(rng: random.Random) -> str:
    """Words that the world does not know at all: other languages, emoji, noise."""
    kind = rng.random()
    if kind < 0.4:
        return " ".join(rng.sample(_FOREIGN, rng.randint(1, 3)))
    if kind < 0.7:
        return " ".join(_gibberish(rng) for _ in range(rng.randint(1, 30)))
    if kind < 0.85:
        ranges = ((0x20, 0x7E), (0xA1, 0x17F), (0x400, 0x45F), (0x4E00, 0x9FFF), (0x1F300, 0x1F5FF))
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))
    return " ".join(rng.choice(_SUBJECTS + _DEEDS) for _ in range(rng.randint(2, 25)))
