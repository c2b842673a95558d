"""What a figure in prose is: the sentences of a Markdown text, and the numbers in them that count.

Code, links, years, integers below ten, numbers of exercises, chapters and volumes are no figures;
of a formula the plain number that it is counts, else its decimals. A row of a table is a sentence.
"""

import math
import random
import re
from dataclasses import dataclass

NUMBER = r"(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?|\.\d+(?:e-?\d+)?"
UNIT = r"%|percent|per cent|times|ms|ns|µs|s|seconds?|minutes|hours?|nats|ppm|[kMG]B|bytes|digits"
FIGURE = re.compile(
    rf"(?<![\w./^])(?<!\w-)(?<!\d[, ])(?P<number>{NUMBER})(?![\w/^]|[.,]\d)"
    rf"(?:(?= (?:to|and|or) (?:{NUMBER}) (?P<later>{UNIT})(?!\w))|[ -]?(?P<unit>{UNIT})(?!\w))?"
)
DECIMAL = r"(?<![\d.])\d*\.\d+"
YEAR = re.compile(  # with what stands before it
    r"(?:\b(?:in|of|since|from|to|until|and|on|year|edition) |[(,.] ?|[A-Z]\w+,? |^)"
    r"(?:18[3-9]\d|19\d\d|20[0-2]\d)(?! (?!was|is|has|its|as)[a-z]+s\b)(?!\d)"
)
DROPPED = (  # what is no prose, and what stands instead
    (re.compile(r"^```.*?^```", re.M | re.S), ""),
    (re.compile(r"^(?::::|:\w+:|\(\S+\)=|\*\*Time).*$|^\s*\d+\. ", re.M), ""),
    (re.compile(r"`[^`\n]*`"), "` `"),
    (re.compile(r"\]\((?:[^()\s]|\([^()\s]*\))*\)|https?://\S+"), "]"),
    (
        re.compile(r"\b(?:[Ee]xercises?|[Cc]hapters?|[Ss]ections?|[Ii]ssue) [\d.]*\d(?: to \d+)?"),
        "",
    ),
    (re.compile(r"(?<=\w )\d+(?:, (?=\d{4}\b)| (?=\(\d{4}\b))"), ""),  # the volume before a year
)
COMMON = frozenset(  # no words to know a line by
    """about above after again all also and any are before both but each every for from has have
    here how into its itself last less like many more most much next not once one only other out
    over same than that the their them then there these they this three two under until was what
    when where which while who will with without
    import none true false print return label title figsize""".split()
)


def formula(match: re.Match) -> str:
    """Of a formula the plain number that it is, else its decimals."""
    body = re.sub(r"\{,\}|\\[,;! ]", "", match[1] or match[2])
    body = re.sub(r"(?:\s*\\cdot ?|(?<![\d.]))10\^(?:\{(-?\d+)\}|(\d))", r"e\1\2", body)
    body = re.sub(r"(?<![\d.])e(?=-?\d)", "1e", body)
    if re.fullmatch(rf"\s*[-\\sim]*\s*(?:{NUMBER})\s*", body):
        return f" {body.strip()} "
    return f" $ {' ; '.join(re.findall(DECIMAL, body))} $ "


def prose(markdown: str) -> list[str]:
    """The sentences of a text, without code, links and formulas; a row of a table is a sentence."""
    for pattern, instead in DROPPED:
        markdown = pattern.sub(instead, markdown)
    markdown = re.sub(r"\$\$(.+?)\$\$|\$([^$]+?)\$", formula, markdown, flags=re.S)
    blocks = re.split(r"\n\s*\n|\n(?=\s*[-*|#] ?)", markdown)
    joined = (" ".join(block.split()) for block in blocks)
    return [
        s for block in joined for s in re.split(r"(?<=[.!?:;])\*{0,2}\)? (?=\W{0,3}[A-Z])", block)
    ]


def words(text: str) -> frozenset[str]:
    """What a text speaks of: its words without their endings, names of code in parts."""
    found = re.findall(r"[A-Za-z]{2,}", text.replace("_", " "))
    return frozenset(w.lower()[:5] for w in found if w.lower() not in COMMON and len(w) > 2)


@dataclass(frozen=True)
class Figure:
    """A number in a sentence: where it stands, its value, and the place of its last digit."""

    sentence: str
    span: tuple[int, int]
    value: float
    step: float
    unit: str

    @property
    def text(self) -> str:
        """The number as it is written."""
        return self.sentence[slice(*self.span)]

    @property
    def key(self) -> int:
        """The number in units of its last digit."""
        return round(self.value / self.step)

    def read_as(self, number: float, step: float = 0, exact: bool = False) -> set[int]:
        """What a number would let the prose say here: as it is, or rounded to as many digits.

        One that is itself rounded, to `step`, lets it say no more digits than it has.
        """
        keys = set()
        for share in (1, 100) if self.unit in ("%", "percent") else (1,):
            value = abs(number) * share / self.step
            if step * share > 1.0001 * self.step or value > 1e15:
                continue
            if not exact or abs(value - round(value)) < 1e-6 * value:
                keys |= {math.floor(value + 0.5), math.ceil(value - 0.5)}
        return keys


def parsed(text: str) -> tuple[float, float]:
    """Value and place of the last digit of a number as written."""
    mantissa, _, power = re.sub("[, _]", "", text).partition("e")
    scale = 10.0 ** int(power or 0)
    return float(mantissa) * scale, scale * 10.0 ** -len(mantissa.partition(".")[2])


def figures(sentence: str) -> list[Figure]:
    """The figures of a sentence."""
    found = []
    for match in FIGURE.finditer(sentence):
        number, unit = match["number"], match["unit"] or match["later"] or ""
        value, step = parsed(number)
        year = any(y.end() == match.end("number") for y in YEAR.finditer(sentence))
        small = number.isdigit() and (year or value < 10 and not re.match("0.", number))
        if unit or not small:
            found.append(Figure(sentence, match.span("number"), value, step, unit))
    return found


def anywhere(says: str) -> re.Pattern[str]:
    """The words of a text, with any number, a group, in the place of each of its figures."""
    pattern, last = "", 0
    for start, end in (figure.span for figure in figures(says)):
        pattern += re.escape(says[last:start]) + f"({NUMBER})"
        last = end
    return re.compile(pattern + re.escape(says[last:]))


def wrong(figure: Figure, rng: random.Random) -> str | None:
    """The figure as someone might get it wrong: scaled, two digits swapped, or one replaced."""
    mantissa, e, power = figure.text.partition("e")
    digits = [i for i, c in enumerate(mantissa) if c.isdigit()]
    new = list(mantissa)
    match rng.choice(["scale", "swap", "digit"]):
        case "scale":
            decimals = len(mantissa.partition(".")[2])
            scaled = parsed(mantissa)[0] * rng.choice([0.5, 0.7, 1.3, 2])
            new = list(f"{scaled:{',' * (',' in mantissa)}.{decimals}f}")
        case "swap" if len(digits) > 1:
            a, b = rng.sample(digits, 2)
            new[a], new[b] = new[b], new[a]
        case _:
            telling = [i for i in digits if new[i] != "0"][:2]
            if telling:
                new[rng.choice(telling)] = rng.choice("123456789")
    text = "".join(new) + e + power
    value = parsed(text)[0]
    return text if value and abs(value / figure.value - 1) > 0.05 else None
