"""Numbers below a thousand in German, French and Spanish words, and in a learner's."""

from __future__ import annotations

GERMAN = (
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn",
    "elf", "zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn",
    "neunzehn",
)  # fmt: skip
GERMAN_TENS = (
    "", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig",
)  # fmt: skip
FRENCH = (
    "zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze",
    "douze", "treize", "quatorze", "quinze", "seize", "dix-sept", "dix-huit", "dix-neuf",
)  # fmt: skip
FRENCH_TENS = (
    "", "", "vingt", "trente", "quarante", "cinquante", "soixante", "septante", "huitante",
    "nonante",
)  # fmt: skip
SPANISH = (
    "cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez",
    "once", "doce", "trece", "catorce", "quince", "dieciséis", "diecisiete", "dieciocho",
    "diecinueve", "veinte", "veintiuno", "veintidós", "veintitrés", "veinticuatro", "veinticinco",
    "veintiséis", "veintisiete", "veintiocho", "veintinueve",
)  # fmt: skip
SPANISH_TENS = (
    "", "", "veinte", "treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta",
    "noventa",
)  # fmt: skip
SPANISH_HUNDREDS = {5: "quinientos", 7: "setecientos", 9: "novecientos"}


def german(number: int, learner: bool = False) -> str:
    """Units come before tens; the learner says them as English does."""
    hundreds, rest = divmod(number, 100)
    head = {0: "", 1: "einhundert"}.get(hundreds, f"{GERMAN[hundreds]}hundert")
    if rest < 20:
        return head + (GERMAN[rest] if rest or not head else "")
    tens, units = divmod(rest, 10)
    if not units:
        return head + GERMAN_TENS[tens]
    unit = "ein" if units == 1 else GERMAN[units]
    return head + (f"{GERMAN_TENS[tens]}und{unit}" if learner else f"{unit}und{GERMAN_TENS[tens]}")


def french(number: int, learner: bool = False) -> str:
    """Seventy is sixty-ten, eighty four-twenty; the learner counts by tens, as some regions do."""
    hundreds, rest = divmod(number, 100)
    head = {0: "", 1: "cent"}.get(hundreds, f"{FRENCH[hundreds]} cent{'' if rest else 's'}")
    if not rest and head:
        return head
    return f"{head} {_french_below_100(rest, learner)}".strip()


def _french_below_100(number: int, learner: bool) -> str:
    tens, units = divmod(number, 10)
    if number < 20:
        return FRENCH[number]
    if learner or tens < 7:
        joint = " et " if units == 1 else "-"
        return FRENCH_TENS[tens] + (joint + FRENCH[units] if units else "")
    if tens == 7:
        return "soixante" + (" et " if units == 1 else "-") + FRENCH[10 + units]
    if number == 80:
        return "quatre-vingts"
    return f"quatre-vingt-{FRENCH[number - 80]}"


def spanish(number: int, learner: bool = False) -> str:
    """The twenties are one word, some hundreds irregular; the learner builds them as the others."""
    hundreds, rest = divmod(number, 100)
    regular = f"{SPANISH[hundreds]}cientos"
    head = {0: "", 1: "ciento" if rest else "cien"}.get(hundreds, regular)
    if not learner:
        head = SPANISH_HUNDREDS.get(hundreds, head)
    if not rest and head:
        return head
    tens, units = divmod(rest, 10)
    if rest <= 20 or (rest < 30 and not learner):
        tail = SPANISH[rest]
    else:
        tail = SPANISH_TENS[tens] + (f" y {SPANISH[units]}" if units else "")
    return f"{head} {tail}".strip()
