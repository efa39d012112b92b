"""How LoRA weights are trained: rank, learning rate, steps, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xatlas import Probe, Variable, hookimpl
from xatlas.plugins.training.probe import SHARED, Setting, TrainingProbe

_CURVE = ("setting", "seed", "step", "family")


class LoraRank(TrainingProbe):
    """Held-out loss, KL shift and accuracy along LoRA fine-tuning, rank by rank.

    Definition: as of ``lora_targets``, on the modules of one ``strategy``; weights are scaled by two whatever the rank
    (alpha = 2 × rank).

    Unit: nats per response token; shares.

    Control: the measurement before training, at which every rank computes what the base does.

    Source: Hu et al. 2106.09685.
    """

    name = "lora_rank"
    version = 1

    @dataclass(frozen=True)
    class Parameters(TrainingProbe.Parameters):
        """Ranks, and what they are tried on."""

        ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
        strategy: str = "all_linear"

    def settings(self) -> Mapping[str, Setting]:
        """Return one setting for each rank."""
        asked = self.parameters
        return {f"rank {rank}": Setting(asked.strategy, self.run(rank=rank)) for rank in asked.ranks}


class LoraHyperparameters(TrainingProbe):
    """Held-out loss, KL shift and accuracy along LoRA fine-tuning: learning rates, ranks and steps about one centre.

    Definition: as of ``lora_targets``, on the modules of one ``strategy``; one of learning rate, rank and steps is
    changed at a time.

    Unit: nats per response token; shares.

    Control: the measurement before training, at which every setting computes what the base does.

    Source: Hu et al. 2106.09685; Biderman et al. 2405.09673.
    """

    name = "lora_hyperparameters"
    version = 1
    check_parameters = {**TrainingProbe.check_parameters, "lengths": (2, 3)}  # noqa: RUF012 - a ClassVar in the base

    @dataclass(frozen=True)
    class Parameters(TrainingProbe.Parameters):
        """The values, and what they are tried on; the centre is that of the other parameters."""

        learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
        ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
        lengths: tuple[int, ...] = (25, 50, 100, 200, 400)
        strategy: str = "all_linear"

    def settings(self) -> Mapping[str, Setting]:
        """Return the centre, and what differs from it in one value."""
        asked = self.parameters
        runs = [self.run(), *(self.run(learning_rate=value) for value in asked.learning_rates)]
        runs += [self.run(rank=value) for value in asked.ranks] + [self.run(steps=value) for value in asked.lengths]
        return {
            f"lr {run.learning_rate:g}, rank {run.rank}, {run.steps} steps": Setting(asked.strategy, run)
            for run in runs
        }


class FinetuneMethods(TrainingProbe):
    """SFT, QLoRA, DPO and GRPO on the same prompts: loss, KL shift, accuracy, preference and reward, held out.

    Definition: as of ``lora_targets``, on the modules of one ``strategy``. QLoRA is SFT on weights stored in NF4; its
    base is the unquantised model, so that its KL before training is what quantising does. DPO (beta 0.1) prefers the
    response to the twin's; GRPO (beta 0.04, groups of 8) is rewarded by the suite's check. ``preference``: share of
    prompts whose response is likelier than the rejected one. ``reward``: the probability of the response, which is what
    the check gives an answer that is sampled, on average.

    Unit: nats per response token; shares; probability.

    Control: the measurement before training; ``preference`` 0.5 is chance.

    Source: Dettmers et al. 2305.14314; Rafailov et al. 2305.18290; Shao et al. 2402.03300.
    """

    name = "finetune_methods"
    version = 1
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        **SHARED,
        "preference": Variable(_CURVE, "1", "share of prompts whose response is likelier than the rejected one"),
        "reward": Variable(_CURVE, "1", "probability of the response: the check's mean over sampled answers"),
    }

    @dataclass(frozen=True)
    class Parameters(TrainingProbe.Parameters):
        """Methods, and what they are tried on."""

        strategy: str = "all_linear"

    def settings(self) -> Mapping[str, Setting]:
        """Return one setting for each method."""
        from xatlas.plugins.training.trainer import METHODS

        return {method: Setting(self.parameters.strategy, self.run(method=method)) for method in METHODS}


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probes."""
    return [LoraRank, LoraHyperparameters, FinetuneMethods]
