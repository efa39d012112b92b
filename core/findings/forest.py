"""A figure for any comparison that makes claims: every number with its interval, model by model."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from xatlas.contracts.comparison import Finding


def draw(findings: Sequence[Finding], labels: Mapping[str, str], title: str) -> Figure:
    """Return one panel a claim about models: points with 95 % intervals, filled where supported, and controls."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [finding for finding in findings if not finding.model_other]
    names = list(dict.fromkeys(finding.name for finding in shown)) or [""]
    models = list(dict.fromkeys(finding.model for finding in shown))
    size = (2.4 + 2.8 * len(names), 1.4 + 0.32 * max(1, len(models)))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(title, int(11 * size[0])), fontsize="medium")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        for finding in (each for each in shown if each.name == name):
            row, filled = models.index(finding.model), finding.verdict == "supported"
            axes.plot([finding.low, finding.high], [row, row], color="black", lw=1)
            axes.plot(finding.value, row, "o", color="black", mfc="black" if filled else "white")
            axes.plot(finding.control, row, "x", color="0.5")
        axes.set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.5))
        axes.set_xlabel(labels.get(name, name))
    marks = {
        "supported": ("o", "black", "black"),
        "not supported": ("o", "black", "white"),
        "control": ("x", "0.5", "0.5"),
    }
    handles = [Line2D([], [], ls="", marker=m, color=c, mfc=f, label=what) for what, (m, c, f) in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure
