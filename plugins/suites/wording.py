"""How every family words its prompts: leads x frames, split into train and test.

A prompt is a *lead* (a short opening, possibly empty) and a *frame* (the task, with gaps for its content). A family has
eight leads and five frames: each frame meets four leads in the test split only and the other four in the train split
only, and every lead stands in both splits, with other frames. So no test wording occurs in training, although every
word of it does, and that stays true when all content is masked. Either split has twenty wordings of a family.

Contents are held out too, where a family has enough of them: a sixth of them, picked by a hash, is for the test split
alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.suites import Prompt

Split = Literal["train", "test"]
HELD_OUT_SHARE = 6  # one content in six is for the test split


@dataclass(frozen=True)
class Content:
    """What fills a frame's gaps, and the same for the corrupt twin.

    Parameters
    ----------
    gaps, twin : mapping of str to str or int
        Values for the frame's gaps: of the prompt, and of its twin.
    target, foil : str
        The right answers of the prompt and of the twin, without the leading space.
    key : str, optional
        What must not be shared by train and test; an empty key means that this content may be.
    """

    gaps: Mapping[str, Any]
    twin: Mapping[str, Any]
    target: str
    foil: str
    key: str = ""


@dataclass(frozen=True)
class Frame:
    """One way to word a task.

    Parameters
    ----------
    name : str
        Short name, unique in the family.
    text : str
        Format string; ends in anything but white space.
    draw : callable
        Draws one `Content` from a random generator.
    """

    name: str
    text: str
    draw: Callable[[random.Random], Content]


@dataclass(frozen=True)
class Family:
    """A kind of task: five frames, eight leads.

    Parameters
    ----------
    name, summary : str
        Name as in a prompt's `family`, and one line for people.
    frames : tuple of Frame
        The tasks' wordings.
    leads : tuple of str
        Openings, an even number of them; with their own trailing space or newline.
    """

    name: str
    summary: str
    frames: tuple[Frame, ...]
    leads: tuple[str, ...]

    def wordings(self, split: Split) -> list[tuple[Frame, int]]:
        """Pairs of a frame and a lead's number that belong to `split`, frames taking turns."""
        count = len(self.leads)
        shifts = range(0 if split == "test" else 1, count, 2)
        return [(frame, (number + shift) % count) for shift in shifts for number, frame in enumerate(self.frames)]

    def stream(self, split: Split, seed: int) -> Iterator[Prompt]:
        """Prompts without end, the same for the same arguments on every machine; they may repeat."""
        if split not in ("train", "test"):
            raise XatlasError(f"unknown split {split!r}; valid: train, test")
        generator = random.Random(f"{self.name}/{split}/{seed}")  # a string seed does not depend on PYTHONHASHSEED
        wordings = self.wordings(split)
        number = 0
        while True:
            frame, lead = wordings[number % len(wordings)]
            content = frame.draw(generator)
            while content.key and held_out(f"{self.name}/{content.key}") != (split == "test"):
                content = frame.draw(generator)
            yield self._prompt(f"{self.name}-{split}-{seed}-{number:04d}", frame, lead, content)
            number += 1

    def generate(self, split: Split, n: int, seed: int = 0) -> list[Prompt]:
        """The first `n` prompts of a stream without repetitions, balanced over the split's wordings.

        Raises
        ------
        XatlasError
            If the family cannot make that many different prompts.
        """
        prompts: list[Prompt] = []
        seen: set[str] = set()
        wordings = self.wordings(split)
        queues: dict[str, list[Prompt]] = {f"{frame.name}-{lead}": [] for frame, lead in wordings}
        order = list(queues)
        for attempt, prompt in enumerate(self.stream(split, seed)):
            if attempt > 200 * n + 1000:
                raise XatlasError(f"family {self.name!r} has no {n} different {split} prompts; ask for fewer")
            if prompt.text not in seen:
                seen.add(prompt.text)
                queues[str(prompt.template)].append(prompt)
            while len(prompts) < n and queues[order[len(prompts) % len(order)]]:
                prompts.append(queues[order[len(prompts) % len(order)]].pop(0))
            if len(prompts) >= n:
                return prompts
        raise AssertionError("a stream has no end")

    def _prompt(self, identity: str, frame: Frame, lead: int, content: Content) -> Prompt:
        text = self.leads[lead] + frame.text.format(**content.gaps)
        corrupt = self.leads[lead] + frame.text.format(**content.twin)
        return Prompt(
            id=identity,
            family=self.name,
            text=text,
            target=f" {content.target}",
            foil=f" {content.foil}",
            corrupt_text=corrupt,
            subject=differing_span(text, corrupt),
            template=f"{frame.name}-{lead}",
        )


def held_out(key: str) -> bool:
    """Whether the content with this key belongs to the test split alone."""
    return int(sha256(key.encode())[:2], 16) % HELD_OUT_SHARE == 0


def differing_span(text: str, other: str) -> tuple[int, int]:
    """The characters of `text` that differ from `other`, widened to whole words.

    Raises
    ------
    XatlasError
        If the two are equal.
    """
    if text == other:
        raise XatlasError(f"a prompt and its corrupt twin are equal: {text!r}")
    shorter = min(len(text), len(other))
    start = next((i for i in range(shorter) if text[i] != other[i]), shorter)
    back = next((i for i in range(shorter - start) if text[-1 - i] != other[-1 - i]), shorter - start)
    end = len(text) - back
    if start == end:  # the other text only has something more: mark the word that follows
        end = next((i + 1 for i in range(start, len(text)) if text[i].isalnum()), len(text))
    while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and end > 0 and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end


def other(generator: random.Random, values: tuple[Any, ...], *taken: Any) -> Any:
    """One of `values` that is none of `taken`."""
    return generator.choice([value for value in values if value not in taken])
