"""A model and its adapter: capture sites, edit them, walk its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xatlas.contracts.adapter import Adapter, HookPoint, Site
from xatlas.errors import XatlasError, no_adapter, unknown
from xatlas.files import sha256
from xatlas.interventions import Intervention
from xatlas.manager import adapters
from xatlas.model.holding import holding
from xatlas.model.hooks import (
    CleanRun,
    Editor,
    Hook,
    LayerCall,
    Rebuild,
    SiteFunction,
    attached,
    attention_weights,
    exclusive,
    record,
)
from xatlas.model.proof import prove as prove_hook_points
from xatlas.prompts.reader import Reader, TokenPrompt, TokenSuite
from xatlas.suites import Prompt, Suite
from xatlas.vocabulary import READ_ONLY, TEMPLATE_DATE, BosHabit

#: Hugging Face model → its lock: two that hook one model share it.
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def adapter_for(model: Any) -> Adapter:
    """Return an adapter instance for a loaded Hugging Face model, chosen by its class."""
    name = type(model).__name__
    known = adapters()
    if name not in known:
        raise no_adapter(name, known, model.config.to_dict())
    return known[name](model)


def make_reader(
    model: Any, tokenizer: Any, bos: BosHabit, chat_template: bool, template_date: str = TEMPLATE_DATE
) -> Reader:
    """Return the reader for a Hugging Face model: its context, vocabulary, beginning and end tokens."""
    config = model.config.get_text_config()
    sources = (config, getattr(model, "generation_config", None))
    ends: list[Any] = [getattr(source, "eos_token_id", None) for source in sources]
    begins = [getattr(source, "bos_token_id", None) for source in sources]
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = min(len(module.weight) for module in embeddings if module is not None)
    context = getattr(config, "max_position_embeddings", None)
    return Reader(
        tokenizer,
        bos=bos,
        chat_template=chat_template,
        template_date=template_date,
        context=context if isinstance(context, int) and context > 0 else None,
        begin_token=next((token for token in begins if isinstance(token, int) and 0 <= token < vocabulary), None),
        end_token=[token for given in ends for token in (given if isinstance(given, list) else [given])],
        vocabulary=vocabulary,
    )


class HookedModel:
    """A causal language model whose sites can be captured and edited; its hook points are proved when it is made.

    One thread at a time: what hooks or runs the model holds :attr:`lock`, and other threads wait. Forwards of the
    Hugging Face model itself don't wait; they pass by the hooks of other threads, but not what ``intervene`` holds.

    Raises
    ------
    XatlasError
        No adapter fits the model, or a check of its hook points fails (the module is named).
    """

    def __init__(
        self,
        model: Any,  # a loaded Hugging Face model
        tokenizer: Any,  # its tokenizer; None where no text is read
        *,
        slug: str = "model",  # how results of this model are filed
        bos: BosHabit = "always",  # what stands at position 0
        chat_template: bool = False,  # wrap prompts as a user's turn
        template_date: str = TEMPLATE_DATE,  # what the template takes for today, YYYY-MM-DD
        adapter: Adapter | None = None,  # chosen by the model's class name when left out
        prove: bool = True,  # check every hook point of every layer now
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.slug = slug
        self.adapter = adapter or adapter_for(model)
        self.reader = None if tokenizer is None else make_reader(model, tokenizer, bos, chat_template, template_date)
        self.n_layers = self.adapter.n_layers
        self.d_model = self.adapter.d_model
        layers = range(self.n_layers)
        #: What mixes tokens in each layer, and its heads; None where it has none.
        self.operator_types = [self.adapter.operator_type(layer) for layer in layers]
        self.head_layouts = [self.adapter.head_layout(layer) for layer in layers]
        self.points = [self.adapter.hook_points(layer) for layer in layers]
        #: Sites whose value the model's own forward writes over later, in place; None while that isn't known.
        self.overwritten: Collection[Site] | None = None
        if prove:
            prove_hook_points(self)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(self.operator_types).items())
        what = f"{type(self.model).__name__}, {self.n_layers} layers ({kinds}) of width {self.d_model}"
        return f"<HookedModel {self.slug}: {what}, {str(self.dtype).removeprefix('torch.')} on {self.device}>"

    @property
    def lock(self) -> RLock:
        """What a thread holds while it hooks or runs the model; it may be taken again by the thread that has it."""
        lock: RLock = _LOCKS.setdefault(self.model, RLock())
        return lock

    @property
    def decoder(self) -> Any:
        """The Hugging Face module that runs the layers; Hugging Face's ``base_model`` may be one around it."""
        return self.adapter.module(self.adapter.layers_path.rpartition(".")[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.model.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """What the stream is computed in."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def settings(self) -> dict[str, Any]:
        """What it was loaded with and reads texts by: fields of :class:`xatlas.config.MeasureConfig`."""
        held: dict[str, Any] = {"dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}
        held["attention"] = str(getattr(self.model.config, "_attn_implementation", None))
        reader = self.reader
        if reader is not None:
            held |= {"bos": reader.bos, "template_date": reader.template_date, "chat_template": reader.chat is not None}
        return held

    @property
    def overflow(self) -> str:
        """What to say where numbers are not finite; empty where the dtype isn't to blame."""
        return ": float16 overflows, use float32 or bfloat16" if self.dtype == torch.float16 else ""

    def has(self, site: Site) -> bool:
        """Whether the model has this site."""
        return 0 <= site.layer < self.n_layers and site.kind in self.points[site.layer]

    def point(self, site: Site) -> HookPoint:
        """Return the site's hook point; raises where there is no such site."""
        if not 0 <= site.layer < self.n_layers:
            raise XatlasError(f"layer {site.layer} is out of range: the model has layers 0 to {self.n_layers - 1}.")
        points = self.points[site.layer]
        if site.kind not in points:
            raise unknown(f"site kind in layer {site.layer} ({self.operator_types[site.layer]})", site.kind, points)
        return points[site.kind]

    def check(self, intervention: Intervention) -> None:
        """Refuse an intervention at a site or head that the model doesn't have."""
        self.point(intervention.site)
        layer = intervention.site.layer
        layout = self.head_layouts[layer] if intervention.site.kind == "heads" else None
        for head in intervention.heads or ():
            if layout is not None and not 0 <= head < layout.n_heads:
                raise XatlasError(f"head {head} is out of range: layer {layer} has heads 0 to {layout.n_heads - 1}.")

    @property
    def editable(self) -> list[Site]:
        """All sites that can be changed, layer by layer."""
        every = [Site(layer, kind) for layer, points in enumerate(self.points) for kind in points]
        return [site for site in every if site.kind not in READ_ONLY]

    def sites(self, kind: str) -> list[Site]:
        """Return the sites of one kind, layer by layer."""
        return [Site(layer, kind) for layer in range(self.n_layers) if kind in self.points[layer]]

    def lasting(self, site: Site, value: Tensor) -> Tensor:
        """Return a site's value such that it stays as it is: a copy where the forward writes over it later."""
        return value.clone() if self.overwritten is None or site in self.overwritten else value

    def hook(self, site: Site, function: SiteFunction, point: HookPoint | None = None) -> Hook:
        """Return what :func:`xatlas.model.hooks.attached` takes; the value that ``function`` is given may be kept.

        It is that of the site, or of another hook point of its layer.
        """
        point, module = point or self.point(site), self.adapter.module
        return Hook(
            module(point.module),
            point,
            lambda value: function(self.lasting(site, value)),
            beside=tuple(module(one.module) for one in point.beside),
            layer=self.adapter.layer(site.layer),
        )

    def edit_hooks(self, site: Site, editor: Editor) -> list[Hook]:
        """Return the hooks that replace a site's value by ``editor(value)``; an indirect site needs four."""
        point = self.point(site)
        if point.edit_as is None:
            return [self.hook(site, editor)]
        rebuild = Rebuild(editor)
        return [
            self.hook(Site(site.layer, "resid_pre"), rebuild.enter),
            self.hook(Site(site.layer, point.edit_as), rebuild.add),
            self.hook(site, rebuild.read),
            self.hook(Site(site.layer, "resid_post"), rebuild.leave),
        ]

    @exclusive
    def read(self, suite: Suite | Iterable[Prompt]) -> TokenSuite:
        """Tokenise a suite the way this model reads it; some prompts may be dropped, with a reason, but not all.

        Raises
        ------
        XatlasError
            The model has no tokenizer, or no prompt is left.
        """
        if self.reader is None:
            raise XatlasError("this model was made without a tokenizer: it can't read text.")
        return self.reader.suite(suite)

    def tokens(self, prompts: str | Sequence[TokenPrompt]) -> Tensor:
        """Return the token ids ``(prompt, pos)`` of prompts of equal length, or of one text, read as a prompt is."""
        if isinstance(prompts, str):
            prompts = self.read([Prompt(id="text", family="text", text=prompts)]).prompts
        return torch.tensor([prompt.ids for prompt in prompts], device=self.device)

    @exclusive
    def checksum(self) -> str:
        """Return a hex digest of all weights: it tells whether a probe left them alone."""

        def pieces() -> Iterator[bytes | memoryview]:
            for name, tensor in sorted(self.model.state_dict().items()):
                raw = tensor.detach().contiguous().cpu()
                yield name.encode()
                yield raw.view(torch.uint8).numpy().data if raw.numel() else b""

        return sha256(pieces())

    @exclusive
    def run(
        self,
        ids: Tensor | str,
        interventions: Sequence[Intervention] = (),
        means: Mapping[Site, Tensor] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder on token ids ``(batch, pos)``, or on one text, read as a prompt is.

        No unembedding and no cache: :meth:`logits` turns the result's ``last_hidden_state`` into logits. Interventions
        are held meanwhile as by :meth:`intervene`; further keywords go to the decoder.
        """
        ids = self.tokens(ids) if isinstance(ids, str) else ids
        if not interventions:
            return self.decoder(input_ids=ids, use_cache=False, **kwargs)
        with self.intervene(interventions, means, seed):
            return self.decoder(input_ids=ids, use_cache=False, **kwargs)

    @exclusive
    @torch.inference_mode()
    def capture(self, ids: Tensor | str, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Return the values of ``sites`` ``(batch, pos, ...)`` in one clean forward.

        Of token ids ``(batch, pos)`` without padding, or of one text, read as a prompt is. Where attention patterns
        are among them the forward is an eager one, whatever attention the model was loaded with.

        Raises
        ------
        XatlasError
            The model lacks a site, or gives no attention weights even with eager attention.
        """
        values: dict[Site, Tensor] = {}
        hooks = [self.hook(site, partial(values.__setitem__, site)) for site in dict.fromkeys(sites)]
        patterns = any(site.kind == "attention_pattern" for site in sites)
        with attention_weights(self.model) if patterns else nullcontext(), attached(hooks):
            self.run(ids)
        return values

    @exclusive
    @torch.inference_mode()
    def record(self, ids: Tensor, sites: Sequence[Site] = ()) -> CleanRun:
        """Run ``ids`` ``(prompt, pos)`` once; keep what each layer was called with, and the values at ``sites``."""
        return record(self, ids.shape[0], sites, lambda: self.run(ids))

    @exclusive
    def run_layer(
        self, layer: int, hidden: Tensor, call: LayerCall, prompts: int | None = None, cache: Any = None
    ) -> Tensor:
        """Call one Hugging Face layer with recorded arguments.

        ``hidden`` ``(row, pos, d_model)`` is blocks of the first ``prompts`` rows that were recorded; one by default.
        """
        kwargs = call.for_rows(len(hidden), prompts or len(hidden))
        if cache is not None:
            kwargs[str(self.adapter.cache_argument)] = cache
        hidden = self.lasting(Site(layer, "resid_pre"), hidden)
        output = self.adapter.layer(layer)(hidden, *call.args, **kwargs)
        stream: Tensor = output[0] if isinstance(output, tuple) else output
        return stream

    @exclusive
    def logits(self, hidden: Tensor) -> Tensor:
        """Turn the stream after the last layer ``(..., d_model)`` into logits ``(..., vocabulary)``, in float32."""
        return self.adapter.logits(hidden).float()

    @contextmanager
    def intervene(
        self, interventions: Sequence[Intervention], means: Mapping[Site, Tensor] | None = None, seed: int = 0
    ) -> Iterator[None]:
        """Hold interventions over Hugging Face's own forward and ``generate``, in the order of the model's forward.

        They hold on the prompt and on every cached decode step, with left padding too. During generation ``last`` is
        the newest token of each step. ``means`` holds reference means ``(2, ...)``, for mean ablation; a change that
        needs another run is refused. Other threads' captures and sweeps wait until the ``with`` block ends.

        Raises
        ------
        XatlasError
            The model lacks a site, a mean is missing, or a change needs another run.
        """
        with self.lock, holding(self, interventions, means or {}, seed):
            yield
