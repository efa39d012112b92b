"""Where LoRA weights go: seven ways to choose modules, each from several training seeds."""

from __future__ import annotations

from collections.abc import Mapping

from xatlas import Probe, hookimpl
from xatlas.plugins.training.probe import Setting, TrainingProbe


class LoraTargets(TrainingProbe):
    """Held-out loss, KL shift and accuracy along LoRA fine-tuning, for seven choices of modules.

    Definition: every strategy is trained (SFT; AdamW, constant learning rate; loss on response tokens only) on the
    transfer families' train split, from ``seeds`` training seeds: LoRA's first matrices, the order of the examples, and
    random layers. ``all_linear``, ``attention_only``, ``mlp_only``, ``conv_only`` take these roles in every layer;
    ``atlas_guided`` the output projections and MLPs of the third of the layers (rounded up) that change the readout
    most when their mean-ablated on the train split; ``atlas_full`` all roles of those layers. Measured on held-out
    prompts, before, along and after, by family: ``heldout_loss``, the mean negative log-likelihood of response
    tokens; ``kl_shift``, KL(base ‖ tuned) at response tokens; ``accuracy``, whether greedy decoding gives the response.
    ``trained`` tells families that are trained on from others. The learning rate is constant: a run's measurements
    along the way are the ends of shorter runs.

    Unit: nats per response token; shares.

    Control: ``random_layers``, the roles of ``atlas_guided`` in as many other layers of each operator type, drawn anew
    for each seed, with exactly as many parameters.

    Source: Hu et al. 2106.09685; Biderman et al. 2405.09673.
    """

    name = "lora_targets"
    version = 1

    def settings(self) -> Mapping[str, Setting]:
        """Return one setting for each strategy."""
        from xatlas.plugins.training.targets import STRATEGIES

        return {strategy: Setting(strategy, self.run()) for strategy in STRATEGIES}


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [LoraTargets]
