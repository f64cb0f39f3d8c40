"""Words of the sprites: objects by OpenMoji's code points, colours and sentences.

The vocabularies are nested: each is a prefix of the next, so that an object has the
same number in all. The first 200 were chosen by looking at their pictures at 64x64 and
48x48: none resembles another, and each is called what a child would call it.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# Code point and noun, easy ones first. The breaks are those of VOCABULARIES.
SMALL = """
1F680 rocket, 1F438 frog, 1F431 cat, 1F436 dog, 1F697 car, 1F34C banana, 1F41F fish,
1F98B butterfly, 1F3E0 house, 1F3B8 guitar, 2602 umbrella, 1F6B2 bicycle, 1F355 pizza,
1F511 key, 1F514 bell, 26C4 snowman, 1F418 elephant, 1F427 penguin, 1F335 cactus,
1F344 mushroom, 1F451 crown, 1F333 tree, 1F34E apple, 1F388 balloon
"""
TO_50 = """
1F981 lion, 1F43C panda, 1F437 pig, 1F98A fox, 1F419 octopus, 1F980 crab, 1F422 turtle,
1F40C snail, 1F41E ladybird, 1F353 strawberry, 1F349 watermelon, 1F34D pineapple,
1F955 carrot, 1F354 hamburger, 1F369 doughnut, 1F382 birthday cake, 1F368 ice cream,
1F69C tractor, 1F681 helicopter, 26F5 sailing boat, 1F3F0 castle, 2764 heart, 2B50 star,
1F916 robot, 1F381 present, 1F4A1 light bulb
"""
TO_100 = """
1F42F tiger, 1F435 monkey, 1F428 koala, 1F430 rabbit, 1F992 giraffe, 1F993 zebra,
1F42A camel, 1F989 owl, 1F9A9 flamingo, 1F99C parrot, 1F986 duck, 1F9A2 swan,
1F99A peacock, 1F40B whale, 1F988 shark, 1F99E lobster, 1F577 spider, 1F987 bat,
1F41D bee, 1F996 dinosaur, 1F339 rose, 1F334 palm tree, 1F332 fir tree,
1F347 bunch of grapes, 1F34A orange, 1F34B lemon, 1F352 pair of cherries, 1F345 tomato,
1F966 head of broccoli, 1F951 avocado, 1F33D corn cob, 1F32D hot dog, 1F373 fried egg,
1F9C0 piece of cheese, 1F36D lollipop, 1F9C1 cupcake, 1F968 pretzel,
1F3B1 billiard ball, 1F692 fire engine, 2708 plane, 26FA tent, 1F308 rainbow,
1F319 moon, 1F31E sun, 1FA90 planet, 1F3BA trumpet, 1F941 drum, 1F4F7 camera,
2702 pair of scissors, 26BD football
"""
EVERYDAY = """
1F43B bear, 1F43A wolf, 1F42D mouse, 1F56F candle, 1F434 horse, 1F984 unicorn,
1F98C deer, 1F42E cow, 1F411 sheep, 1F9E0 brain, 1F998 kangaroo, 1F98D gorilla,
1F43F squirrel, 1F994 hedgehog, 1F9A8 skunk, 1F40A crocodile, 1F40D snake, 1F9B4 bone,
1F9AD seal, 1F9E9 jigsaw piece, 1F990 shrimp, 1F41B caterpillar, 1F41C ant,
1FAB2 beetle, 1F414 hen, 1F424 chick, 1F983 turkey, 1F98F rhinoceros, 1F9F1 brick wall,
1FAB6 feather, 1F337 tulip, 1F341 maple leaf, 1F350 pear, 1F351 peach, 1F965 coconut,
1F346 aubergine, 1F336 chilli, 1F9C4 garlic bulb, 1F95C peanut, 1F950 croissant,
1F956 baguette, 1F95E stack of pancakes, 1F96A sandwich, 1F32E taco,
1F37F bag of popcorn, 1F36A cookie, 1F36C candy, 1F36F honey pot, 2615 cup of coffee,
1FAD6 teapot, 1F377 glass of wine, 1F37A glass of beer, 1F682 steam engine,
1F691 ambulance, 1F3CD motorcycle, 1F6FC roller skate, 1F3C1 chequered flag,
2693 anchor, 1F6DF lifebuoy, 1FA82 parachute, 1F6F8 flying saucer, 1F6A6 traffic light,
1F6D1 stop sign, 26EA church, 1F3ED factory, 1F30B volcano, 2744 snowflake, 1F525 flame,
1F4A7 drop of water, 26A1 lightning bolt, 1F48E diamond, 1F48D ring,
1F576 pair of sunglasses, 1F455 shirt, 1F457 dress, 1F9E3 scarf, 1F392 backpack,
1F460 high-heeled shoe, 1F462 boot, 1F3A9 top hat, 1F9F3 suitcase, 1F3B7 saxophone,
1F3BB violin, 1F3A4 microphone, 260E telephone, 270F pencil, 1F512 padlock,
1F528 hammer, 1F527 wrench, 2699 gear, 1F9F2 magnet, 1FA9C ladder, 1F52C microscope,
1FA91 chair, 1F9F9 broom, 23F0 alarm clock, 1F3C6 trophy, 1F9F8 teddy bear, 1F47B ghost,
1F480 skull
"""
VOCABULARIES = {"small": 24, "50": 50, "100": 100, "everyday": 200, "all": None}

# Names and sRGB values of flat backgrounds.
COLOURS = {
    "white": (245, 245, 245),
    "grey": (140, 140, 140),
    "red": (210, 60, 55),
    "yellow": (250, 215, 85),
    "green": (75, 165, 90),
    "light blue": (155, 205, 245),
    "dark blue": (35, 55, 125),
    "purple": (140, 60, 180),
}
COLOUR_VALUES = np.array([*COLOURS.values()], np.float32)  # [8, 3], 0 to 255
GRADIENTS = tuple((a, b) for a in COLOURS for b in COLOURS if a != b)  # top, bottom
PHOTOGRAPH = "photograph"
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = ("slow", "fast")

SYNONYMS = {
    "grey": ("grey", "gray"),
    "light blue": ("light blue", "pale blue"),
    "dark blue": ("dark blue", "navy blue"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "slow": ("slowly", "at a slow pace"),
    "fast": ("quickly", "at a fast pace"),
}
STILL_TEMPLATES = (
    "{0} on {1}",
    "a picture of {0} on {1}",
    "{0} in front of {1}",
    "{1} with {0}",
)
CLIP_TEMPLATES = (
    "{0} on {1} moves {2} {3}",
    "{3}, {0} moves {2} on {1}",
    "{0} in front of {1} glides {2} {3}",
    "on {1}, {0} is moving {2} {3}",
)


def with_article(noun: str) -> str:
    """Return "a rocket", "an owl". Of the vowels only u may sound like a consonant."""
    vowel = noun[0] in "aeio" or (noun[0] == "u" and not noun.startswith("uni"))
    return f"{'an' if vowel else 'a'} {noun}"


def parse(table: str) -> list[tuple[int, str]]:
    """Return code points and nouns of a table of this module."""
    rows = (row.split(maxsplit=1) for row in table.split(","))
    return [(int(code, 16), " ".join(noun.split())) for code, noun in rows]


PICKED = tuple(parse(",".join((SMALL, TO_50, TO_100, EVERYDAY))))


def objects(vocabulary: str, drawn: Iterable[int] = ()) -> tuple[tuple[int, str], ...]:
    """Return code points and nouns of a vocabulary.

    drawn: code points of OpenMoji's pictures. `all` has first the 200 of `everyday`,
    then those that have a name in Unicode which is not taken, by code point.
    """
    count = VOCABULARIES[vocabulary]
    if count is not None:
        return PICKED[:count]
    nouns = {noun: code for code, noun in PICKED}
    for code in sorted(set(drawn) - set(nouns.values())):
        if name := unicodedata.name(chr(code), "").lower():
            nouns.setdefault(name, code)
    return tuple((code, noun) for noun, code in nouns.items())


def background_words(value: str) -> list[str]:
    """Return phrases for a background by its label: "a dark blue background"."""
    if value == PHOTOGRAPH:
        return ["a photograph"]
    if " to " in value:
        top, bottom = value.split(" to ")
        return [f"a background from {top} to {bottom}"]
    return [f"{with_article(word)} background" for word in SYNONYMS.get(value, [value])]


def caption(values: list[str], rng: np.random.Generator) -> str:
    """Draw a sentence for the names of object, background (, direction, speed)."""
    choices = _phrases([(value,) for value in values])
    templates = CLIP_TEMPLATES if len(values) > 2 else STILL_TEMPLATES
    words = [options[int(rng.integers(len(options)))] for options in choices]
    return templates[int(rng.integers(len(templates)))].format(*words)


def captions(vocabulary: Sequence[Sequence[str]]) -> list[str]:
    """Return all sentences that `caption` may return, of stills and of clips.

    vocabulary: the names of objects, of backgrounds (, of directions, of speeds).
    """
    phrases = _phrases(vocabulary)
    stills = itertools.product(STILL_TEMPLATES, *phrases[:2])
    clips = itertools.product(CLIP_TEMPLATES, *phrases) if phrases[2:] else ()
    return [template.format(*words) for template, *words in (*stills, *clips)]


def _phrases(vocabulary: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the phrases for the names of each attribute."""
    nouns, backgrounds, *motion = vocabulary
    phrases = [[with_article(noun) for noun in nouns]]
    phrases.append([words for name in backgrounds for words in background_words(name)])
    for names in motion:
        phrases.append([word for name in names for word in SYNONYMS.get(name, (name,))])
    return phrases
