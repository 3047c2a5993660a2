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
    "Sgt": "sergeant", "Cpl": "corporal", "Pvt": "private", "Adm": "admiral", "Cmdr": "commander", "Gov": "governor",
    "Sen": "senator", "Rep": "representative", "Pres": "president", "Hon": "honorable", "Mt": "mount", "Ft": "fort",
}  # fmt: skip
# So do these before what they speak of; the dot of those that follow may end a sentence as well.
_LEADING = {
    "e.g": "for example", "i.e": "that is", "vs": "versus", "cf": "compare", "viz": "namely",
    "approx": "approximately", "resp": "respectively",
}  # fmt: skip
_ABBREVIATIONS = {
    "Co": "company", "Corp": "corporation", "Inc": "incorporated", "Ltd": "limited", "Bros": "brothers",
    "Jr": "junior", "Sr": "senior", "Esq": "esquire", "Ave": "avenue", "Blvd": "boulevard", "Rd": "road",
    "Univ": "university", "etc": "et cetera", "et al": "et al", "a.k.a": "also known as", "dept": "department",
    "govt": "government", "assoc": "associate", "asst": "assistant",
}  # fmt: skip
_BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "vol": "volume", "vols": "volumes", "p": "page", "pp": "pages",
    "fig": "figure", "figs": "figures", "ch": "chapter", "sec": "section", "art": "article", "eq": "equation",
    "apt": "apartment", "rm": "room", "ext": "extension", "tel": "telephone", "ca": "about",
    "jan": "January", "feb": "February", "mar": "March", "apr": "April", "jun": "June", "jul": "July",
    "aug": "August", "sept": "September", "sep": "September", "oct": "October", "nov": "November", "dec": "December",
}  # fmt: skip
_LIVES = {"c": "circa", "b": "born", "d": "died"}  # small letters before a year
_COMPASS = {"N": "North", "S": "South", "E": "East", "W": "West"}
_WEEKDAYS = {
    "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Thurs": "Thursday",
    "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday",
}  # fmt: skip
_MEASURES = {"ft", "lb", "lbs", "oz", "mi", "in", "inch", "min", "hr", "hrs", "sec", "tbsp", "tsp"}
# Words that begin a sentence more often than a name: after "Co." or "U.S." only these make the dot its end.
_STARTERS = (
    "a|after|all|also|although|an|and|another|as|at|because|before|both|but|by|during|each|even|every|few|for|from|had|"
    "has|have|he|her|here|his|how|however|i|if|in|instead|it|its|later|many|meanwhile|more|most|my|no|nor|not|now|of|on|"
    "once|only|or|other|our|she|since|so|some|soon|such|than|that|the|their|then|there|these|they|this|those|though|"
    "through|thus|to|today|under|until|we|were|what|when|where|which|while|who|why|with|yet|you|your"
)
# Words after "a $5" or "a 10 km" that are not what is counted.
_NO_NOUNS = "and|or|but|a|an|the|of|in|on|at|to|for|from|per|by|with|as|is|was|if|than|that|each|more|less|every"
_CONJUNCTIONS = "and|or|but|nor|yet|so|because|although|though|while|when|where|which|who|that|if|as|than"

# Abbreviations that end a sentence only before such a word.
_MAY_END = {*(name.lower().split()[-1] for name in _ABBREVIATIONS), "st"}
# What parts a text before its sentences: blank lines, and the items of lists.
_BLOCKS = r"\n\s*\n|\n(?=\s*(?:[-*•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s)"
_ITEM = r"\(?(?:\d{1,2}[.)]|[a-z]\))"

_MONEY = {
    "$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen"),
    "₹": ("rupee", "paisa"), "₩": ("won", "jeon"), "₽": ("ruble", "kopeck"), "₿": ("bitcoin", "cent"),
}  # fmt: skip
_COUNTRIES = {"US": "US", "C": "Canadian", "CA": "Canadian", "A": "Australian", "AU": "Australian", "NZ": "New Zealand",
              "HK": "Hong Kong"}  # fmt: skip
_CODES = {"USD": "US dollar", "EUR": "euro", "GBP": "pound", "JPY": "yen"}
_PLURALS = {"penny": "pence", "yen": "yen", "sen": "sen", "won": "won", "jeon": "jeon", "paisa": "paise",
            "foot": "feet", "inch": "inches", "six": "sixes"}  # fmt: skip
_SCALES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "μm": "micrometer", "nm": "nanometer",
    "mi": "mile", "yd": "yard", "ft": "foot", "inch": "inch", "sq ft": "square foot", "sq. ft": "square foot",
    "kg": "kilogram", "g": "gram", "mg": "milligram", "μg": "microgram", "lb": "pound", "lbs": "pound",
    "oz": "ounce", "L": "liter", "l": "liter", "ml": "milliliter", "mL": "milliliter", "tbsp": "tablespoon",
    "tsp": "teaspoon", "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "sec": "second",
    "ms": "millisecond", "μs": "microsecond", "ns": "nanosecond", "Hz": "hertz", "kHz": "kilohertz",
    "MHz": "megahertz", "GHz": "gigahertz", "kB": "kilobyte", "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte",
    "TB": "terabyte", "kbps": "kilobit per second", "Mbps": "megabit per second", "Gbps": "gigabit per second",
    "W": "watt", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "Wh": "watt hour", "kWh": "kilowatt hour",
    "V": "volt", "mAh": "milliamp hour", "dB": "decibel", "°C": "degree Celsius", "°F": "degree Fahrenheit",
    "°": "degree", "km/h": "kilometer per hour", "m/s": "meter per second", "km/s": "kilometer per second",
    "mph": "mile per hour",
}  # fmt: skip
_DENOMINATORS = {2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 32, 64, 100}  # others are no fractions: "24/7"
_TITLED = "King|Queen|Pope|Emperor|Empress|Tsar|Czar|Kaiser|Sultan"
_KINGS = (
    "Henry|Edward|George|James|Charles|William|Richard|Louis|Philip|Francis|Napoleon|Frederick|Wilhelm|Leopold|Otto|"
    "Ferdinand|Alfonso|Christian|Gustav|Ivan|Peter|Nicholas|Alexander|Catherine|Elizabeth|Mary|Pius|Leo|Gregory|"
    "Innocent|Urban|Clement|Benedict|Paul|Julius|Sixtus|Boniface|Ptolemy|Ramses|Ramesses|Darius|Xerxes"
)
_COUNTED = (
    "World War|Chapter|Part|Volume|Book|Act|Scene|Section|Article|Phase|Type|Appendix|Super Bowl|"
    "chapter|part|volume|book|act|scene|section|article|phase|type|appendix"
)
_NAMES = "John|Robert|Thomas|Joseph|David|Michael|Samuel|Walter|Albert|Arthur|Harold|James|William|Charles|George|Henry"
_ROMAN = {
    tens + ones: 10 * ten + one
    for ten, tens in enumerate(("", "X", "XX", "XXX", "XL"))
    for one, ones in enumerate(("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"))
    if tens + ones
}
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

# States before a ZIP code, which is read digit by digit.
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|DC|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|"
    "PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY"
)
_DAYS = "|".join(_WEEKDAYS.values())
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_SYMBOLS = {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "%": "percent",
    "±": "plus or minus", "≈": "about", "<": "less than", ">": "more than", "≤": "at most", "≥": "at least",
    "∞": "infinity", "°": "degrees", "©": "copyright", "§": "section",
    **{sign: unit for sign, (unit, _) in _MONEY.items()},
}  # fmt: skip
_WEB = {".": "dot", "@": "at", "/": "slash", "_": "underscore", "-": "dash", ":": "colon", "~": "tilde", "#": "hash",
        "?": "question mark", "=": "equals", "&": "and", "%": "percent", "+": "plus"}  # fmt: skip
_SPOKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?'\"()[]{}-"
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʼ`", "'"), **dict.fromkeys("“”„‟″«»", '"'), **dict.fromkeys("‐‑−", "-"),
        **dict.fromkeys("—―", " -- "), "…": "...", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O",
        "ß": "ss", "ł": "l", "Ł": "L", "đ": "d", "ð": "d", "þ": "th", "Þ": "Th", "²": " squared", "³": " cubed",
        **dict.fromkeys("™®℠", ""), "№": "No. ", "≠": " is not equal to ", **dict.fromkeys("→←⇒⇐•■●▪◆", " -- "),
    }
)  # fmt: skip


def normalize(text: str) -> str:
    """The text in words as an American reads it, its signs in ASCII. Blank lines stay; other white space is one space.

    Numbers have no "and" ("one hundred fifty-six"). Four digits without a comma are a year from 1100 to 1999 and from
    2010 to 2099 ("fourteen fifty-five"), unless they are money or a measure. A month's day is a plain number ("May
    five"). Addresses of the web are read sign by sign, telephone numbers digit by digit. Capitals such as "NASA" or
    "U.S." stay, so do letters outside Latin, and text that is in words already. Emoji are left out, and so are marks
    that no one reads. Besides letters and .,;:!?'"()[]{}- only pictures such as a snowman remain, which the caller may
    refuse by name.
    """
    return "\n\n".join(filter(None, (_read(paragraph) for paragraph in re.split(r"\n\s*\n", text))))


def sentences(text: str) -> list[str]:
    """The text's sentences in order, white space as single spaces. A blank line and an item of a list end one, too.

    A dot does not end one in "Mr. Bell", "J. S. Bach", "3.5" or "wait ... no". In doubt ("the U.S. Army") it does not.
    """
    found = []
    for block in re.split(_BLOCKS, text):
        words = block.split()
        cased = block != block.lower()
        start = 0
        for i, word in enumerate(words):
            before = words[i - 1] if i > start else ""
            after = words[i + 1] if i + 1 < len(words) else ""
            if i == 0 and after and re.fullmatch(_ITEM, word):
                continue
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
    if not match or not any(c.isalnum() for c in opening):
        return False
    if cased and opening[0].islower() and not re.match(r"[a-z]+[A-Z]|[a-z]\)", opening):  # but "iPads", "b)"
        return False
    stem, marks = match[1].lstrip("\"'“‘«(["), match[2]
    if marks != ".":
        return True
    small, numbered = stem.lower(), opening[0].isdigit()
    if small in _LEADING or stem in ("P.S", "N.B") or (small in _BEFORE_NUMBERS and numbered):
        return False
    if stem.capitalize() in _TITLES and (stem[:1].isupper() or not cased):
        return False
    if stem in _WEEKDAYS or small in ("a.m", "p.m"):
        return not numbered and not re.match(rf"(?:{_DAYS}|{'|'.join(_MONTHS)}|[A-Z]{{2,}})\b", opening)
    if re.fullmatch(r"[IVX]+", stem) and before in _COUNTED.split("|"):
        return True
    if stem == "I" and before.islower():
        return True
    if re.fullmatch(r"[a-z]", stem) or small in _MEASURES or small == "etc":
        return not numbered
    if re.fullmatch(r"(?:[A-Za-z]\.)*[A-Za-z]", stem) or small in _MAY_END:
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
    return " ".join("".join(c if _stays(c) else " " for c in text).split())


def _stays(character: str) -> bool:
    """Letters and marks that a voice knows, and what only a caller can decide on: other scripts and pictures."""
    category = unicodedata.category(character)
    return character in _SPOKEN or category[0] in "LM" or category == "So"


def _fold(text: str) -> str:
    """Quotes, dashes and accents in ASCII."""
    text = re.sub(r"^\s*[-*•]\s+|</?[A-Za-z][^<>\d=]*>", "", text)  # an item's mark, a tag
    text = re.sub("[\U0001f000-\U0001faff]|[\u2190-\u2bff]\ufe0f", " ", text)  # emoji
    text = re.sub(r"(?<=\d) [-−–] (?=\d[\d.,]* ?=)|(?<=\d) − (?=\d)", " minus ", text)
    text = re.sub(r"(?:(?<=[\w%°¢)])|(?<=[a-z]\.))–(?=[\w$£€¥.])", "-", text).replace("–", " -- ")
    text = re.sub(r"(?<=\w)(?:[⁻⁰¹²³⁴-⁹]{2,}|[⁰¹⁴-⁹])", lambda power: f" to the power of {_level(power[0])}", text)
    text = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = unicodedata.normalize("NFKD", text.translate(_FOLDED)).replace("⁄", "/")
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))
    text = re.sub(r"\s*(?<!-)--+\s*|\s+-\s+", " -- ", text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def _level(superscript: str) -> str:
    return unicodedata.normalize("NFKD", superscript).replace("−", "-")


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


def _leading(match: re.Match[str]) -> str:
    return _apart(match, _like(_LEADING[match[1].lower()], match[1]))


def _abbreviation(match: re.Match[str]) -> str:
    word = _like(next(w for name, w in _ABBREVIATIONS.items() if name.lower() == match[1].lower()), match[1])
    return word + _dot(match)


def _weekday(match: re.Match[str]) -> str:
    return _WEEKDAYS[match[1]] + _dot(match)


def _month(match: re.Match[str]) -> str:
    return f"{match[1]} {_BEFORE_NUMBERS[match[2].lower()]}{_dot(match)}"


def _web(match: re.Match[str]) -> str:
    """An address or a file's name; parts that cannot be said are spelled ("uk", "txt")."""
    words = []
    *parts, last = re.findall(r"[^\W_]+|[^\w\s]|_", re.sub(r"^https?://", "", match[0]))
    for part in (*parts, last):
        mute = len(part) > 1 and (not re.search(r"[aeiouAEIOU\d]", part) or (part is last and len(part) == 2))
        words.append(_WEB[part] if part in _WEB else " ".join(part.upper()) if mute else part)
    return " ".join(words)


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
    groups = re.findall(r"\d+", match[0])
    plus = "plus " if match[0].startswith("+") else ""
    return plus + ", ".join(" ".join(num2words(int(d)) for d in group) for group in groups)


def _local(match: re.Match[str]) -> str:
    """555-1234 is a telephone number, 500-1000 a range, and so is 987-1066 after "from"."""
    rounded = match[1].endswith("0") and match[2].endswith("0") and not match[2].startswith("0")
    before = match.string[: match.start()].lower().split()[-1:]
    if rounded or before in (["from"], ["between"], ["pages"], ["years"], ["in"]):
        return match[0]
    return _digits(match)


def _emergency(match: re.Match[str]) -> str:
    return f"{match[1]} {' '.join(num2words(int(d)) for d in match[2])}"


def _money(match: re.Match[str]) -> str:
    sign, country, currency, first, second, scale = match.groups()
    unit, part = _MONEY[currency]
    prefix = f"{_COUNTRIES[country]} " if country else ""
    amount = second or first
    words = f"{_number(first)} to " if second else ""
    whole, _, decimals = amount.replace(",", "").partition(".")
    if not scale and not second and len(decimals) == 2:
        counts = [(int(whole or 0), prefix + unit), (int(decimals), part)]
        amounts = [f"{_whole(str(n))} {name if n == 1 else _plural(name)}" for n, name in counts if n]
        words = " and ".join(amounts) or f"zero {_plural(prefix + unit)}"
    else:
        scale = f" {_SCALES.get(scale.lower(), scale.lower())}" if scale else ""
        single = (amount == "1" and not scale) or _before_noun(match)
        words += f"{_number(amount)}{scale} {prefix}{unit if single else _plural(unit)}"
    return ("minus " if sign else "") + words


def _code(match: re.Match[str]) -> str:
    unit = _CODES[match[2]]
    return f"{_number(match[1])} {unit if match[1] == '1' else _plural(unit)}"


def _before_noun(match: re.Match[str]) -> bool:
    """Whether a number and its unit tell what kind of thing follows: "a $5 bill", not "$5 a day"."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    return bool(re.search(r"(?i)\ban? $", before) and re.match(rf" (?!(?:{_NO_NOUNS})\b)[a-z]{{2,}}", after))


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
    unit = _UNITS[name]
    single = gap == "-" or number == "1" or number.startswith("1/") or (not dot and _before_noun(match))
    if not single:  # degrees Celsius, miles per hour, square feet
        unit = re.sub(r"^.*?(?= per | Celsius| Fahrenheit|$)", lambda head: _plural(head[0]), unit, count=1)
    return f"{number if '/' in number else _number(number)}{gap or ' '}{unit}{_dot(match) if dot else ''}"


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


def _sharp(match: re.Match[str]) -> str:
    return _apart(match, match[1] + " sharp")


def _early_year(match: re.Match[str]) -> str:
    return f"{match[1]} {num2words(int(match[2]), to='year').replace('oh-', 'oh ')}"


def _greek(match: re.Match[str]) -> str:
    """A letter of a formula."""
    return _apart(match, unicodedata.name(match[0]).split()[-1].lower())


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
    *head, last = word.split()
    if head:
        return " ".join([*head, _plural(last)])
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("hertz"):
        return word
    return f"{word[:-1]}ies" if word.endswith("y") else "halves" if word == "half" else f"{word}s"


def _any(names: Iterable[str]) -> str:
    """A pattern for any of these names, the longest first."""
    return "(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")"


# A lone I is a number only where no sentence can go on with the pronoun, a lone V or X where it is no initial.
_LONG_NUMERAL = rf"({'|'.join(sorted((n for n in _ROMAN if len(n) > 1), key=len, reverse=True))})\b(?!'(?!s\b))"
_NUMERAL = (
    rf"({'|'.join(n for n in _ROMAN if len(n) > 1)}|[VX](?!\.? (?!(?i:{_STARTERS})\b)[A-Z])|"
    r"I(?=[,;:!?)]|\.?$| of\b))\b(?!'(?!s\b))"
)
_STEPS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?<![\w@.])(?:https?://|www\.)[^\s\"'<>()]*[\w/]|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.\w+", _web),
    (r"(?<![\w@.-])[A-Za-z][\w-]+(?:\.[\w-]+)*\.[a-z][a-z0-9]+\b(?:/[\w/.#?=&%~+-]*[\w/])?", _web),
    (r"(?i)(?<=\d)\s*([ap])(?:\.\s?m\.|m\b\.?)", lambda match: f" {match[1].lower()}.m."),
    (rf"\b{_any(_TITLES)}\.(?: ?(?=[A-Z])| (?=[a-z]))", _title),
    (r"\b(Mr|Mrs|Ms|Dr) (?=[A-Z])", _title),
    (rf"\bSt\. ?(?=[A-Z])(?!(?i:{_STARTERS})\b)", "Saint "),
    (r"\bPh\. ?D\.", "P.H.D."),
    (r"\bSt\.", _street),
    (rf"\b(?i:{_any(_LEADING)})\.", _leading),
    (r"\bvs\b", "versus"),
    (r"(?<![\w/])w/o\b", "without"),
    (r"(?<![\w/])w/ ?(?=[A-Za-z])", "with "),
    (rf"\b(?i:{_any(_ABBREVIATIONS)})\.", _abbreviation),
    (r"\bmax\. (?=[a-z\d])", "maximum "),  # "Max." is a name
    (r"(?<!\d )(?<!\d)\bmin\. (?=[a-z])", "minimum "),
    (r"\best\. (?=(?:in )?\d)", "established "),
    (rf"\b{_any(set(_WEEKDAYS) - {'Sun'})}\.", _weekday),
    (r"\b(Sun)\.(?=,| [a-z])", _weekday),
    (r"(?i)\b(in|since|until|by|last|next|early|late|of) (jan|feb|apr|aug|sept|oct|nov|dec)\.(?! ?\d)", _month),
    (
        rf"\b{_any(_WEEKDAYS)}-{_any(_WEEKDAYS)}\b",
        lambda match: f"{_WEEKDAYS[match[1]]} to {_WEEKDAYS[match[2]]}",
    ),
    (rf"\b({_DAYS}|{'|'.join(_MONTHS)})-(?={_DAYS}|{'|'.join(_MONTHS)})", r"\1 to "),
    (rf"\b(?i:{_any(_BEFORE_NUMBERS)})\. ?(?=\d)", _before_number),
    (rf"(?<![\w.]){_any(_LIVES)}\. ?(?=\d{{3,4}}\b)", lambda match: _LIVES[match[1]] + " "),
    (rf"\b((?:(?:{_TITLED}) (?:[A-Z][a-z]+)|{_KINGS}|John Paul)) {_NUMERAL}", _ruler),
    (rf"\b((?:{_TITLED}) [A-Z][a-z]+) {_any(_ROMAN)}\b(?!'(?!s\b))", _ruler),
    (rf"\b((?:{_NAMES}) (?:[A-Z]\.? )?[A-Z][a-z]+),? (II|III|IV)\b", _ruler),
    (rf"\b((?!(?i:part|type) I\b)(?:{_COUNTED})) {_NUMERAL}", _counted),
    (rf"\b({_COUNTED}) (I|[VX](?=\.))(?=\.)", _counted),
    (rf"\b(World War) {_any(_ROMAN)}\b", _counted),
    (rf"\b((?!(?i:{_STARTERS})\b)[A-Z][a-z]+) {_LONG_NUMERAL}", _counted),
    (rf"(?<=\d )([NSEW])\. (?=\d|[A-Z])(?!(?i:{_STARTERS})\b)", lambda match: _COMPASS[match[1]] + " "),
    (r"(?<![.\w])([A-Z])\.(?= [A-Z])", _initial),
    (r"(?<![\w-])(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\w-])", _date),
    (r"(?<![\w(+-])(?:\+?1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])", _digits),
    (r"(?<!\w)\+\d{1,3}(?:[ .-]?(?:\(\d+\)|\d{2,})){2,}", _digits),
    (r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-])", _digits),
    (rf"(?<![\w.,$£€¥/-])(\d{{3}})-(\d{{4}})(?![\w%/°-]| ?{_any(_UNITS)}\b)", _local),
    (r"(?i)\b((?:call|dial|phone|ring)(?:s|ed|ing)?) ([2-9]11|999|112)\b(?! [a-z]+s\b)", _emergency),
    (rf"(?<=\b(?:{_STATES}) )\d{{5}}(?:-\d{{4}})?\b|(?i:(?<=zip )|(?<=zip code ))\d{{5}}\b", _digits),
    (rf"(?<![\w.,$£€¥₹₩₽])({_NUMBER}(?:-{_NUMBER})?)(?: ?([£€¥₹₩₽])|([$]))(?!\d)", r"\2\3\1"),
    (r"(?<=\d[kmbKMB])-(?=[$£€¥])|(?<=\dbn)-(?=[$£€¥])", " to "),
    (
        rf"(?i)(?<!\w)(-?)((?-i:{'|'.join(_COUNTRIES)}))?([$£€¥₹₩₽₿]) ?({_NUMBER})(?:-[$£€¥₹₩₽]?({_NUMBER}))?"
        r"(?:[ -]?(thousand|million|billion|trillion|k|m|bn|b|tn)\b)?",
        _money,
    ),
    (rf"(?<![\w.,])({_NUMBER}) ?{_any(_CODES)}\b", _code),
    (r"(\d) ?¢", r"\1 cents"),
    (r"(?<=:\d\d)-(?=\d)|(?<=[ap]\.m\.)-(?=\d)", " to "),
    (r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?![\d:])( [ap]\.m\.)?", _time),
    (r"(?<!\d)0([1-9])00(?= hours\b)", r"oh \1 hundred"),
    (r"(?<=\d):(?=\d)", " to "),
    (rf"(?<![\w.,/-])({_NUMBER}[%°]?)-(?!\1(?![\d.,]))(?={_NUMBER}(?![\d/-]))", r"\1 to "),
    (r"(?<![\w.)-])-(?=\.?\d)", "minus "),
    (r"(?<=\d) ?x ?(?=\d)|(?<=\d[a-z]m) x (?=\d)|(?<=\d [a-z]m) x (?=\d)", " by "),
    (r"(?<!\w)(\d)'(\d\d?)(?:\"|'')", r"\1 feet \2 inches"),
    (rf"(ft\.? {_NUMBER}) ?in\b", r"\1 inch"),
    (r"(?<=\d) in(?=\.)", " inch"),
    (r"(?<=\d) s(?=[\s.,;:!?)]|$)", " sec"),
    (rf"(?<![\w.,/])((?:\d+ )?\d+/\d+|{_NUMBER})( ?|-){_any(_UNITS)}(?![\w/'])(\.?)", _measure),
    (r"(?<![\w/.,])(?:(\d+) )?(\d+)/(\d+)(?![\d/])", _fraction),
    (r"(?<=\d) / (?=\d)", " divided by "),
    (r"(?<=\d)/(?=\d)", " "),
    (r"(?<![\w.,])'?(\d{1,3}(?:,\d{3})+|\d+)'?s\b", _decade),
    (r"(?i)(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d{1,15})(?:st|nd|rd|th)\b", _ordinal),
    (r"(?<!\w)'(?=\d\d\b)", ""),
    (r"(?<!\w)([ACDFG])#(?!\d)", _sharp),
    (r"# ?(?=\d)", "number "),
    (r"#(?=\w)", "hashtag "),
    (r"(?<!\w)([A-D])-(?=[\s.,;:!?)]|$)", r"\1 minus"),
    (r"~ ?(?=\d)", "about "),
    (r"(?<=\w)\^ ?(?=\w)", " to the power of "),
    (r"(?<=\d) ?\* ?(?=\d)", " times "),
    (r"\band/or\b", "and or"),
    (r"(?<=[a-z]{2})/(?=[a-z]{2})", " or "),
    (r"(?<!\S)\*(?=[\s.,;:!?]|$)", "star"),
    (r"(?<!\S)#(?=[\s.,;:!?]|$)", "pound"),  # keys of a telephone
    (r"[-=]+>|<[-=]+", " "),
    (r"(?<![α-ωΑ-Ω])[α-ωΑ-Ω](?![α-ωΑ-Ω])", _greek),
    (
        rf"(?i)\b(in|since|until|by|year|circa|born|died) (10\d\d)(?=[.,;:!?)]|$| (?:{_STARTERS})\b)(?![.,]\d)",
        _early_year,
    ),
    (r"\d+(?:\.\d+){2,}", _version),
    (_NUMBER, _plain),
    (_any(_SYMBOLS), _symbol),
)
