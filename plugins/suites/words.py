"""The words that fill the prompts: short, common, one token in most tokenizers."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "cat dog fox cow pig hen bee owl ant bat fish bird lion bear wolf frog tree leaf rose corn rice milk salt bread "
    "apple lemon cake soup boat ship train road lamp door wall roof book desk ring coin shoe hat coat key cup fork "
    "drum bell song star moon sun rain snow wind sand rock lake hill"
)
COLOURS = _words("red blue green black white brown pink gold grey yellow")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
VARIABLES = _words("a b c d k m n p q r s t u v w x y z")
NAMES = _words("count total index value name size item result data key")
FUNCTIONS = _words("run load save send read stop start parse")
MODULES = _words("math json time random string copy glob queue heapq shutil")

# country, capital, language, continent; single words only
COUNTRIES: tuple[tuple[str, str, str, str], ...] = (
    ("France", "Paris", "French", "Europe"),
    ("Italy", "Rome", "Italian", "Europe"),
    ("Spain", "Madrid", "Spanish", "Europe"),
    ("Germany", "Berlin", "German", "Europe"),
    ("Portugal", "Lisbon", "Portuguese", "Europe"),
    ("Greece", "Athens", "Greek", "Europe"),
    ("Poland", "Warsaw", "Polish", "Europe"),
    ("Sweden", "Stockholm", "Swedish", "Europe"),
    ("Norway", "Oslo", "Norwegian", "Europe"),
    ("Denmark", "Copenhagen", "Danish", "Europe"),
    ("Finland", "Helsinki", "Finnish", "Europe"),
    ("Hungary", "Budapest", "Hungarian", "Europe"),
    ("Russia", "Moscow", "Russian", "Europe"),
    ("Ukraine", "Kiev", "Ukrainian", "Europe"),
    ("Ireland", "Dublin", "English", "Europe"),
    ("Austria", "Vienna", "German", "Europe"),
    ("Japan", "Tokyo", "Japanese", "Asia"),
    ("China", "Beijing", "Chinese", "Asia"),
    ("Korea", "Seoul", "Korean", "Asia"),
    ("Thailand", "Bangkok", "Thai", "Asia"),
    ("Vietnam", "Hanoi", "Vietnamese", "Asia"),
    ("Iran", "Tehran", "Persian", "Asia"),
    ("Iraq", "Baghdad", "Arabic", "Asia"),
    ("Turkey", "Ankara", "Turkish", "Asia"),
    ("Egypt", "Cairo", "Arabic", "Africa"),
    ("Kenya", "Nairobi", "Swahili", "Africa"),
    ("Cuba", "Havana", "Spanish", "America"),
    ("Peru", "Lima", "Spanish", "America"),
    ("Chile", "Santiago", "Spanish", "America"),
    ("Canada", "Ottawa", "English", "America"),
)

# word, opposite: facts that the train split lacks, for the transfer suite
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"), ("high", "low"),
    ("fast", "slow"), ("wet", "dry"), ("rich", "poor"), ("hard", "soft"), ("old", "young"), ("long", "short"),
    ("open", "closed"), ("full", "empty"), ("early", "late"), ("strong", "weak"), ("light", "dark"), ("good", "bad"),
    ("happy", "sad"), ("near", "far"), ("win", "lose"), ("buy", "sell"), ("push", "pull"), ("love", "hate"),
)  # fmt: skip
