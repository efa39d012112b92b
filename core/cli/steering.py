"""The command that steers one text."""

from __future__ import annotations

from dataclasses import asdict
from itertools import zip_longest
from typing import Annotated, Any

import typer

from xatlas.cli import options
from xatlas.cli.output import echo, print_json, print_table, say, told
from xatlas.errors import XatlasError


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(told(steer))


@options.configured("attention", "draws", "seed")
def steer(
    model: Annotated[str, typer.Argument(help="Name or path of a model.", autocompletion=options.complete("models"))],
    text: Annotated[str, typer.Argument(help="What the model continues.")],
    direction: Annotated[
        str,
        typer.Option(
            metavar="random:SEED|FAMILY|FILE",
            help="A seed, a family of the reference suite, a .npy file, or a steering result as FILE.nc:DIRECTION.",
        ),
    ],
    layer: Annotated[int, typer.Option(help="Layer after which the direction is added, from 0.")],
    strength: Annotated[float, typer.Option(help="Length of what is added; below 0, away from the direction.")],
    relative: Annotated[
        bool, typer.Option("--relative", help="Strength in multiples of the layer's median norm on the suite.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Most tokens that are generated.")] = 30,
    *,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Continue a text with a direction added at every newest token, beside the clean continuation."""
    from xatlas.api import load
    from xatlas.config import MeasureConfig

    # Everything that can be wrong without a model is found before one is loaded.
    settings = MeasureConfig.make(**config)
    from xatlas.steer import Direction, check_strength
    from xatlas.steer import steer as steer_text

    check_strength(strength)
    if tokens < 1:
        raise XatlasError(f"--tokens {tokens} does not fit: it takes a whole number from 1.")
    assert settings.reference is not None
    source = Direction.read(direction, settings.reference)
    hooked = load(model, **{name: value for name, value in config.items() if name not in ("suite", "reference")})
    vector = source.vector(hooked, layer, settings.reference)
    norm_of = settings.suite if relative else None
    done = steer_text(hooked, text, vector, layer, strength, relative_to=norm_of, tokens=tokens)
    if as_json:
        print_json({"model": hooked.slug, "text": text, "direction": direction, "layer": layer, **asdict(done)})
        return
    texts = [each.strip("\n") if each.strip() else "(the text ends here)" for each in (done.clean, done.steered)]
    lines = zip_longest(*(each.split("\n") for each in texts), fillvalue="")
    print_table([{"clean": clean, "steered": steered} for clean, steered in lines])
    echo(f"\nKL(clean || steered) at the first step: {done.kl:.4g} nats; added at layer {layer}: {done.length:.4g}")
    if done.clean == done.steered:
        say("the continuations are the same: a larger strength may tell them apart.")
