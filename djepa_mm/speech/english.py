"""Written English to words as they are read, to sentences, and to pieces of a length that a model can take."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from num2words import num2words

from djepa_mm.types import UserError

# What an abbreviation with a dot stands for. Titles come before a name, so that their dot never ends a sentence.
_TITLES = {
    "Mr": "mister", "Mrs": "missus", "Ms": "miz", "Messrs": "messieurs", "Dr": "doctor", "Prof": "professor",
    "Rev": "reverend", "Gen": "general", "Col": "colonel", "Maj": "major", "Capt": "captain", "Lt": "lieutenant",
    "Sgt": "sergeant", "Gov": "governor", "Sen": "senator", "Rep": "representative", "Mt": "mount", "Ft": "fort",
}  # fmt: skip
_ABBREVIATIONS = {
    "Co": "company", "Corp": "corporation", "Inc": "incorporated", "Ltd": "limited", "Bros": "brothers",
    "Jr": "junior", "Sr": "senior", "Esq": "esquire", "Ave": "avenue", "Blvd": "boulevard", "Rd": "road",
    "etc": "et cetera", "e.g": "for example", "i.e": "that is", "vs": "versus", "cf": "compare", "viz": "namely",
    "approx": "approximately", "dept": "department",
}  # fmt: skip
_BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "vol": "volume", "vols": "volumes", "p": "page", "pp": "pages",
    "fig": "figure", "figs": "figures", "ch": "chapter", "sec": "section", "art": "article", "ca": "about",
    "jan": "January", "feb": "February", "mar": "March", "apr": "April", "jun": "June", "jul": "July",
    "aug": "August", "sept": "September", "sep": "September", "oct": "October", "nov": "November", "dec": "December",
}  # fmt: skip
_MAY_END = {*(name.lower() for name in _ABBREVIATIONS), "st", "ft", "lb", "lbs", "oz", "mi", "in", "min", "hr", "hrs"}
# Words that begin a sentence more often than a name: after "Co." or "U.S." only these make the dot its end.
_STARTERS = (
    "a|after|all|also|although|an|and|another|as|at|because|before|both|but|by|during|each|even|every|few|for|from|had|"
    "has|have|he|her|here|his|how|however|i|if|in|instead|it|its|later|many|meanwhile|more|most|my|no|nor|not|now|of|on|"
    "once|only|or|other|our|she|since|so|some|soon|such|than|that|the|their|then|there|these|they|this|those|though|"
    "through|thus|to|today|under|until|we|were|what|when|where|which|while|who|why|with|yet|you|your"
)
_CONJUNCTIONS = "and|or|but|nor|yet|so|because|although|though|while|when|where|which|who|that|if|as|than"

_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_PLURALS = {"penny": "pence", "yen": "yen", "sen": "sen", "foot": "feet", "hertz": "hertz", "six": "sixes"}
_SCALES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "mi": "mile", "yd": "yard", "ft": "foot",
    "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce", "L": "liter",
    "l": "liter", "ml": "milliliter", "mL": "milliliter", "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute",
    "ms": "millisecond", "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "kB": "kilobyte",
    "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "W": "watt", "kW": "kilowatt",
    "MW": "megawatt", "V": "volt", "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
    "km/h": "kilometer per hour", "m/s": "meter per second", "mph": "mile per hour",
}  # fmt: skip
_DENOMINATORS = {2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 32, 64, 100}  # others are no fractions: "24/7"
_TITLED = "King|Queen|Pope|Emperor|Empress|Tsar|Czar|Kaiser|Sultan"
_KINGS = (
    "Henry|Edward|George|James|Charles|William|Richard|Louis|Philip|Francis|Napoleon|Frederick|Wilhelm|Leopold|Otto|"
    "Ferdinand|Alfonso|Christian|Gustav|Ivan|Peter|Nicholas|Alexander|Catherine|Elizabeth|Mary|Pius|Leo|Gregory|"
    "Innocent|Urban|Clement|Benedict|Paul|Julius|Sixtus|Boniface|Ptolemy|Ramses|Ramesses|Darius|Xerxes"
)
_COUNTED = "World War|Chapter|Part|Volume|Book|Act|Scene|Section|Article|Phase|Type|Appendix"
_ROMAN = {
    "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XI": 11, "XII": 12,
    "XIII": 13, "XIV": 14, "XV": 15, "XVI": 16, "XVII": 17, "XVIII": 18, "XIX": 19, "XX": 20, "XXI": 21, "XXII": 22,
}  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_SYMBOLS = {"&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "%": "percent"}
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʼ`", "'"), **dict.fromkeys("“”„‟″«»", '"'), **dict.fromkeys("‐‑", "-"), "−": "-",
        **dict.fromkeys("—―", " -- "), "…": "...", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O",
        "ß": "ss", "ł": "l", "Ł": "L", "đ": "d", "ð": "d", "þ": "th", "Þ": "Th", "²": " squared", "³": " cubed",
    }
)  # fmt: skip


def normalize(text: str) -> str:
    """The text in words as an American reads it, its signs in ASCII. Blank lines stay; other white space is one space.

    Numbers have no "and" ("one hundred fifty-six"). Four digits without a comma are a year from 1100 to 1999 and from
    2010 to 2099 ("fourteen fifty-five"), unless they are money or a measure. A month's day is a plain number ("May
    five"). Capitals such as "NASA" or "U.S." stay, so do letters outside Latin, and text that is in words already.
    """
    return "\n\n".join(filter(None, (_read(paragraph) for paragraph in re.split(r"\n\s*\n", text))))


def sentences(text: str) -> list[str]:
    """The text's sentences in order, white space as single spaces. A blank line ends a sentence, too.

    A dot does not end one in "Mr. Bell", "J. S. Bach", "3.5" or "wait ... no". In doubt ("the U.S. Army") it does not.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        cased = paragraph != paragraph.lower()
        start = 0
        for i, word in enumerate(words):
            before = words[i - 1] if i > start else ""
            after = words[i + 1] if i + 1 < len(words) else ""
            if _ends(before, word, after, cased=cased):
                found.append(" ".join(words[start : i + 1]))
                start = i + 1
    return found


def pieces(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text's sentences, and parts of those that do not fit. Every piece fits; together they are all the words.

    A sentence is cut behind ; : , or a dash where that suffices, else before a conjunction, else between any words: as
    seldom as can be, and into parts of like length. A part of what fits must fit. Raises UserError for a word too long.
    """
    return [piece for sentence in sentences(text) for piece in _cut(sentence.split(), fits)]


# ---- sentences and pieces


def _ends(before: str, word: str, after: str, *, cased: bool) -> bool:
    """Whether a sentence ends with `word`, given the words before and after it ("" at the text's ends).

    Where the text is not `cased`, a small letter can begin one, too.
    """
    if not after:
        return True
    match = re.fullmatch(r"(.*?)([.!?…]+)[\"'”’»)\]]*", word)
    opening = after.lstrip("\"'“‘«([-–—")
    if not match or (cased and opening[:1].islower()) or not opening:
        return False
    stem, marks = match[1].lstrip("\"'“‘«(["), match[2]
    if marks != ".":
        return True
    if stem.capitalize() in _TITLES and (stem[:1].isupper() or not cased):
        return False
    if stem.lower() in _BEFORE_NUMBERS and opening[:1].isdigit():
        return False
    if stem == "I" and before.islower():
        return True
    if re.fullmatch(r"(?:[A-Za-z]\.)*[A-Za-z]", stem) or stem.lower() in _MAY_END:
        if stem.islower():
            return not opening[0].isdigit()
        return re.match(rf"(?i:{_STARTERS})\b", opening) is not None
    return True


def _cut(words: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    """One sentence in pieces: those of the least bad cuts, then the fewest, then the most even, word by word."""
    best: list[tuple[tuple[int, int, int], list[str]]] = [((0, 0, 0), [])]  # of the first 0, 1, 2, … words
    for end in range(1, len(words) + 1):
        ways = []
        for start in range(end - 1, -1, -1):
            piece = " ".join(words[start:end])
            if not fits(piece):
                if start == end - 1:
                    raise UserError(f"the word {words[start]!r} alone is too long to be spoken at once: shorten it")
                break
            (bad, count, squares), head = best[start]
            bad += _badness(words[start - 1], words[start]) if start else 0
            ways.append(((bad, count + 1, squares + len(piece) ** 2), [*head, piece]))
        best.append(min(ways))
    return best[-1][1]


def _badness(left: str, right: str) -> int:
    """Of a cut between two words of a sentence."""
    if not any(c.isalnum() for c in right):  # a dash stays with the words that it follows
        return 4
    if re.search(r"(?:[;:,]|--|[–—])[\"')\]]*$", left) or left == "-":
        return 0
    return 1 if re.fullmatch(_CONJUNCTIONS, right.lower()) else 2


# ---- words for signs


def _read(text: str) -> str:
    text = _fold(text)
    for pattern, put in _STEPS:
        text = re.sub(pattern, put, text)
    return " ".join(text.split())


def _fold(text: str) -> str:
    """Quotes, dashes and accents in ASCII."""
    text = re.sub(r"(?<=\w)–(?=\w)", "-", text).replace("–", " -- ")
    text = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = unicodedata.normalize("NFKD", text.translate(_FOLDED)).replace("⁄", "/")
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))
    text = re.sub(r"\s*(?<!-)--+\s*|\s+-\s+", " -- ", text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def _dot(match: re.Match[str]) -> str:
    """The dot after an abbreviation, where it ends a sentence as well; else nothing."""
    before, rest = match.string[: match.start()].split(), match.string[match.end() :]
    if re.match(r"[\"')\]]*[^\s\"')\]]", rest):  # the sentence goes on without a space
        return ""
    after = rest.lstrip("\"')]").split()
    ends = _ends(before[-1] if before else "", match[0].split()[-1], after[0] if after else "", cased=True)
    return "." if ends else ""


def _like(word: str, model: str) -> str:
    """The word with a capital where its model has one."""
    return word[0].upper() + word[1:] if model[0].isupper() else word


def _title(match: re.Match[str]) -> str:
    return _like(_TITLES[match[1]], match[1]) + " "


def _abbreviation(match: re.Match[str]) -> str:
    word = _like(next(w for name, w in _ABBREVIATIONS.items() if name.lower() == match[1].lower()), match[1])
    return word + _dot(match)


def _street(match: re.Match[str]) -> str:
    return "Street" + _dot(match)


def _initial(match: re.Match[str]) -> str:
    return match[1] + _dot(match)


def _before_number(match: re.Match[str]) -> str:
    return _like(_BEFORE_NUMBERS[match[1].lower()], match[1]) + " "


def _ruler(match: re.Match[str]) -> str:
    return f"{match[1]} the {num2words(_ROMAN[match[2]], to='ordinal')}"


def _counted(match: re.Match[str]) -> str:
    return f"{match[1]} {num2words(_ROMAN[match[2]])}"


def _date(match: re.Match[str]) -> str:
    year, month, day = match.groups()
    return f"{_MONTHS[int(month) - 1]} {int(day)}, {year}"


def _digits(match: re.Match[str]) -> str:
    """Telephone numbers and their like, digit by digit."""
    return ", ".join(" ".join(num2words(int(d)) for d in group) for group in match[0].split("-"))


def _money(match: re.Match[str]) -> str:
    sign, currency, first, second, scale = match.groups()
    unit, part = _MONEY[currency]
    amount = second or first
    words = f"{_number(first)} to " if second else ""
    whole, _, decimals = amount.replace(",", "").partition(".")
    if not scale and not second and len(decimals) == 2:
        counts = [(int(whole or 0), unit), (int(decimals), part)]
        amounts = [f"{_whole(str(n))} {name if n == 1 else _plural(name)}" for n, name in counts if n]
        words = " and ".join(amounts) or f"zero {_plural(unit)}"
    else:
        scale = f" {_SCALES.get(scale.lower(), scale.lower())}" if scale else ""
        words += f"{_number(amount)}{scale} {unit if amount == '1' and not scale else _plural(unit)}"
    return ("minus " if sign else "") + words


def _time(match: re.Match[str]) -> str:
    hour, minute, second, half = match.groups()
    words = _number(str(int(hour)))
    if int(minute):
        words += f" oh {_number(minute[1])}" if minute[0] == "0" else f" {_number(minute)}"
    elif not half:
        words += " o'clock" if 1 <= int(hour) <= 12 else " hundred"
    return words + (f" {_number(second.lstrip('0') or '0')}" if second else "") + (half or "")


def _measure(match: re.Match[str]) -> str:
    number, gap, name, dot = match.groups()
    first, *rest = _UNITS[name].split()
    if gap != "-" and number != "1" and not number.startswith("1/"):
        first = _plural(first)
    end = _dot(match) if dot else ""
    return f"{number if '/' in number else _number(number)}{gap or ' '}{' '.join([first, *rest])}{end}"


def _fraction(match: re.Match[str]) -> str:
    whole, n, d = match.groups()
    if int(d) not in _DENOMINATORS or int(n) >= int(d) or int(n) == 0:
        return match[0].replace("/", " ")
    part = {"2": "half", "4": "quarter"}.get(d) or num2words(int(d), to="ordinal")
    return (f"{_number(whole)} and " if whole else "") + f"{_number(n)} {part if n == '1' else _plural(part)}"


def _decade(match: re.Match[str]) -> str:
    head, gap, last = re.fullmatch(r"(?:(.*)([ -]))?(\w+)", _year(match[1])).groups("")  # type: ignore[union-attr]
    return head + gap + _plural(last)


def _ordinal(match: re.Match[str]) -> str:
    return num2words(int(match[1].replace(",", "")), to="ordinal").replace(" and ", " ").replace(",", "")


def _version(match: re.Match[str]) -> str:
    return " point ".join(_whole(number) for number in match[0].split("."))


def _plain(match: re.Match[str]) -> str:
    return _apart(match, _year(match[0]))


def _symbol(match: re.Match[str]) -> str:
    return _apart(match, _SYMBOLS[match[0]])


def _apart(match: re.Match[str], words: str) -> str:
    """The words with a space to letters beside them."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    apart = {*_SYMBOLS, "$"}
    left = " " if before.isalnum() or before in apart else ""
    return left + words + (" " if after.isalnum() or after in apart else "")


def _whole(digits: str) -> str:
    """A whole number in words; one that begins with 0 or is very long goes digit by digit."""
    digits = digits.replace(",", "")
    if (len(digits) > 1 and digits[0] == "0") or len(digits) > 15:
        return " ".join(num2words(int(d)) for d in digits)
    return num2words(int(digits)).replace(" and ", " ").replace(",", "")


def _number(written: str) -> str:
    """A number without a sign in words: "1,234.50" is "one thousand two hundred thirty-four point five zero"."""
    whole, _, decimals = written.partition(".")
    words = [_whole(whole)] if whole else []
    if decimals:
        words += ["point", *(num2words(int(d)) for d in decimals)]
    return " ".join(words)


def _year(written: str) -> str:
    """A number in words, as a year where it is one."""
    if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", written):
        return num2words(int(written), to="year").replace("oh-", "oh ")
    return _number(written)


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    return f"{word[:-1]}ies" if word.endswith("y") else "halves" if word == "half" else f"{word}s"


def _any(names: Iterable[str]) -> str:
    """A pattern for any of these names, the longest first."""
    return "(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")"


# A lone I is a number only where no sentence can go on with the pronoun, a lone V or X where it is no initial.
_NUMERAL = (
    rf"({'|'.join(n for n in _ROMAN if len(n) > 1)}|[VX](?!\.? (?!(?i:{_STARTERS})\b)[A-Z])|"
    r"I(?=[,;:!?)]|\.?$| of\b))\b(?!')"
)
_STEPS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?i)(?<=\d)\s*([ap])(?:\.\s?m\.|m\b\.?)", lambda match: f" {match[1].lower()}.m."),
    (rf"\b{_any(_TITLES)}\. ?(?=[A-Z])", _title),
    (r"\b(Mr|Mrs|Ms|Dr) (?=[A-Z])", _title),
    (rf"\bSt\. ?(?=[A-Z])(?!(?i:{_STARTERS})\b)", "Saint "),
    (r"\bPh\. ?D\.", "P.H.D."),
    (r"\bSt\.", _street),
    (rf"\b(?i:{_any(_ABBREVIATIONS)})\.", _abbreviation),
    (rf"\b(?i:{_any(_BEFORE_NUMBERS)})\. ?(?=\d)", _before_number),
    (rf"\b((?:(?:{_TITLED}) (?:[A-Z][a-z]+)|{_KINGS}|John Paul)) {_NUMERAL}", _ruler),
    (rf"\b((?:{_TITLED}) [A-Z][a-z]+) {_any(_ROMAN)}\b(?!')", _ruler),
    (rf"\b({_COUNTED}) {_NUMERAL}", _counted),
    (rf"\b(World War) {_any(_ROMAN)}\b", _counted),
    (r"(?<![.\w])([A-Z])\.(?= [A-Z])", _initial),
    (r"(?<![\w-])(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\w-])", _date),
    (r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-])", _digits),
    (
        rf"(?i)(?<!\w)(-?)([$£€¥]) ?({_NUMBER})(?:-[$£€¥]?({_NUMBER}))?"
        r"(?:[ -]?(thousand|million|billion|trillion|k|m|bn|b|tn)\b)?",
        _money,
    ),
    (r"(\d) ?¢", r"\1 cents"),
    (r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?![\d:])( [ap]\.m\.)?", _time),
    (r"(?<=\d):(?=\d)", " to "),
    (rf"(?<![\w.,/-])({_NUMBER}%?)-(?={_NUMBER}(?![\d/-]))", r"\1 to "),
    (r"(?<![\w.)-])-(?=\.?\d)", "minus "),
    (r"(?<=\d) ?x ?(?=\d)", " by "),
    (rf"(?<![\w.,/])((?:\d+ )?\d+/\d+|{_NUMBER})( ?|-){_any(_UNITS)}(?![\w/'])(\.?)", _measure),
    (r"(?<![\w/.,])(?:(\d+) )?(\d+)/(\d+)(?![\d/])", _fraction),
    (r"(?<=\d)/(?=\d)", " "),
    (r"(?<![\w.,])'?(\d{1,3}(?:,\d{3})+|\d+)'?s\b", _decade),
    (r"(?i)(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d{1,15})(?:st|nd|rd|th)\b", _ordinal),
    (r"(?<!\w)'(?=\d\d\b)", ""),
    (r"# ?(?=\d)", "number "),
    (r"#(?=\w)", "hashtag "),
    (r"\d+(?:\.\d+){2,}", _version),
    (_NUMBER, _plain),
    (_any(_SYMBOLS), _symbol),
)
