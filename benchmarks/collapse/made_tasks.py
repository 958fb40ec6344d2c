"""Tasks whose rows are computed: numbers, code, forms, ciphers."""

import json
import random
from pathlib import Path

from text_tasks import Pairs

DIGITS = tuple("0123456789")
ROWS = 2600
NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry"),
    *("Ida", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul"),
)
FRUIT = (
    *("apple", "pear", "plum", "cherry", "grape", "lemon", "melon"),
    *("orange", "peach", "mango", "berry", "date", "fig", "lime"),
)
TOOLS = (
    *("hammer", "saw", "drill", "wrench", "ruler", "pliers", "chisel"),
    *("level", "shovel", "rake", "axe", "nail", "screw", "bolt"),
)
CITIES = (
    *("Paris", "Rome", "Berlin", "Madrid", "Vienna", "Oslo"),
    *("Cairo", "Lima", "Tokyo", "Delhi", "Accra", "Quito"),
)


def addition(_: Path) -> Pairs:
    """The last digit of a sum."""
    rng = random.Random(0)
    for _row in range(ROWS):
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        yield f"{a} + {b}\nLast digit of the sum:", str((a + b) % 10)


def larger(_: Path) -> Pairs:
    """Which of two numbers is larger."""
    rng = random.Random(1)
    for _row in range(ROWS):
        a, b = rng.sample(range(100, 1000), 2)
        yield f"First: {a}\nSecond: {b}\nLarger:", "first" if a > b else "second"


def parity(_: Path) -> Pairs:
    """Whether a number is odd or even."""
    rng = random.Random(2)
    for number in rng.sample(range(1000, 10000), ROWS):
        yield f"Number: {number}\nParity:", "odd" if number % 2 else "even"


def _value(rng: random.Random, kind: str) -> str:
    number, fruit = rng.randrange(1000), rng.choice(FRUIT)
    if kind == "int":
        return rng.choice([str(number), f"len({fruit!r}) + {number}", f"abs(-{number})"])
    if kind == "str":
        upper = f"'{fruit} {number}'.upper()"
        return rng.choice([f"{fruit!r} * {number}", f"str({number})", upper])
    if kind == "bool":
        return f"{number} {rng.choice(['<', '>', '==', '!='])} {rng.randrange(1000)}"
    inner = [_value(rng, rng.choice(["int", "str"])) for _ in range(rng.randrange(1, 3))]
    if kind == "list":
        return rng.choice([f"[{', '.join(inner)}]", f"list(range({number}))"])
    keys = rng.sample(FRUIT, len(inner))
    return "{" + ", ".join(f"{k!r}: {v}" for k, v in zip(keys, inner, strict=True)) + "}"


TYPES = ("int", "str", "bool", "list", "dict")


def code(_: Path) -> Pairs:
    """The type of a Python expression."""
    rng = random.Random(3)
    for _row in range(2 * ROWS):
        kind = rng.choice(TYPES)
        yield f">>> x = {_value(rng, kind)}\nType of x:", kind


def record(_: Path) -> Pairs:
    """A sentence as a JSON object."""
    rng = random.Random(4)
    for _row in range(ROWS):
        name, age, city = rng.choice(NAMES), rng.randrange(18, 90), rng.choice(CITIES)
        wanted = json.dumps({"name": name, "age": age, "city": city})
        yield f"{name} is {age} years old and lives in {city}.\nRecord:", wanted


SHOPS = ("fruit", "tools", "people", "cities")


def odd_one(_: Path) -> Pairs:
    """What a list is a list of, apart from the one that does not belong."""
    rng = random.Random(5)
    lists = dict(zip(SHOPS, (FRUIT, TOOLS, NAMES, CITIES), strict=True))
    for _row in range(ROWS):
        kind, other = rng.sample(SHOPS, 2)
        words = [*rng.sample(lists[kind], 3), rng.choice(lists[other])]
        rng.shuffle(words)
        yield f"{', '.join(words)}\nMost are:", kind


def _shifted(word: str, by: int) -> str:
    return " ".join(chr((ord(c) - ord("a") + by) % 26 + ord("a")) for c in word)


def _cipher(by: int) -> Pairs:
    rng = random.Random(6)
    for _row in range(ROWS):
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4))
        yield f"Letters: {' '.join(word)}\nCoded:", f"{_shifted(word, by)}."


def cipher(_: Path) -> Pairs:
    """Every letter moved on by one."""
    return _cipher(1)


def cipher_back(_: Path) -> Pairs:
    """Every letter moved back by one, asked as ``cipher`` asks."""
    return _cipher(-1)


MADE_TASKS = {
    "addition": (addition, DIGITS),
    "larger": (larger, ("first", "second")),
    "parity": (parity, ("odd", "even")),
    "code": (code, TYPES),
    "record": (record, None),
    "most": (odd_one, SHOPS),
    "cipher": (cipher, None),
    "cipher-back": (cipher_back, None),
}
