"""A network with what one must know to ask it questions. `loading.py` has the ways to get hold of one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ratherthan.errors import InputError, LayerError, ModelError, RatherThanError, first_line, unknown
from ratherthan.inference import differentiable, forward_of, to_device
from ratherthan.inputs import PREPROCESSING, Images, Inputs
from ratherthan.outputs import NONE, OUTPUTS, Ending, Output, output_of, plain_ending
from ratherthan.settings import check_names
from ratherthan.words import told_apart

# what a network may raise on an input it does not like
_FAILURES: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError)
_FAILURES += (OSError, RuntimeError, TypeError, ValueError)
_OWN = ("class_names", "output", "layer", "name", "forward")  # arguments that are neither the module nor its inputs
_READS_LEAF: WeakSet[nn.Module] = WeakSet()  # networks that were seen to
_SHOWN = 5  # names of classes, on its card
HALF = torch.float16, torch.bfloat16
Forward = Callable[[nn.Module, Tensor], Any]


class Model:
    """A torch module, what it sees, what it says, and the names of its classes.

    Args:
        module: The network. It maps what `inputs` makes, e.g. normalised images (N, C, H, W), to what `output` says. Of
            one that went through `torch.compile`, the original is taken, whose weights are the same.
        class_names: One name per class; those that occur more than once get their index, as in "crane (134)".
        output: "logits" (a single one is the log-odds of a sigmoid classifier), "probabilities" (their logarithm
            serves as logits; a single one is that of class 1), "value" (one number, a regressor), or an `Output`. None:
            logits, or a value where the config of a transformers network says so.
        layer: Dotted name of the layer that layer methods explain; None: found automatically.
        name: What to call it in results.
        inputs: What the network sees; None: `Images` with the settings that follow.
        forward: How it is run, where `module(images)` is not it: a function of the module and the images that returns
            what `output` says. It picks an output, or fills in further arguments.
        **images: Settings of `Images`: mean, std, size, fit, crop_fraction, interpolation, channels; or preprocessing,
            "imagenet", "clip", "half" or "none", for those not given. Without mean and std a photograph is warned of.

    Raises:
        InputError: If a setting does not exist or does not fit.
        ModelError: If the network has no weights yet.

    Example:
        >>> model = Model(network, names, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224)
        >>> model = Model(detector, names, forward=lambda net, x: net(x, image_size=x.shape[-2:])["logits"][:, 0])
    """

    def __init__(
        self,
        module: nn.Module,
        class_names: Sequence[str] | None = None,
        *,
        output: str | Output | None = None,
        layer: str | None = None,
        name: str | None = None,
        inputs: Inputs | None = None,
        forward: Forward | None = None,
        **images: Any,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"a model is a torch.nn.Module, not {type(module).__name__}")
        if isinstance(class_names, (str, Path, Mapping)):
            raise InputError(f"class_names is a list of names, not {class_names!r}; a file: read_class_names(...)")
        if inputs is not None and images:
            raise InputError(f"give {', '.join(images)} to {type(inputs).__name__}(...) itself")
        check_names(Images, images)
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        first = next(iter(self._tensors()), torch.empty(0))
        if first.is_meta or is_lazy(first):
            why = "lie on the device 'meta': load them first" if first.is_meta else "are lazy: run it once before"
            raise ModelError(f"{type(module).__name__} has no weights yet, they {why}")
        self.class_names = None if class_names is None else told_apart([str(name) for name in class_names])
        self.inputs = inputs or Images.of(self.module, **images)
        self.output = OUTPUTS.make(output_of(self.module) if output is None else output)
        self.layer = layer
        self.forward = forward
        self.name = name or type(self.module).__name__
        self.class_names = self.class_names or self.output.names(self)
        if self.class_names and not self.output.exclusive and self.class_names[-1] != NONE:
            self.class_names += (NONE,)

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"Model({self.name}{classes}, layer={self.layer!r}, input: {self.inputs.describe()})"

    def _repr_html_(self) -> str:
        from html import escape

        names = self.class_names or ()
        classes = f"{len(names)}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}" if names else "unnamed"
        told = {
            "input": self.inputs.describe(), "layer": self.layer or "found when it is explained", "classes": classes,
            "output": self.output.name, "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            "device": f"{self.device}, {str(self.dtype).removeprefix('torch.')}",
        }  # fmt: skip
        rows = "".join(f"<tr><th>{key}</th><td>{escape(said)}</td></tr>" for key, said in told.items())
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"

    @staticmethod
    def wrap(model: Model | nn.Module) -> Model:
        """A bare module becomes a `Model` that is fed as it is."""
        return model if isinstance(model, Model) else Model(model)

    def replace(self, **changes: Any) -> Model:
        """The same network with some settings changed.

        Args:
            **changes: Any argument of `Model` but the module; settings of its inputs change those in force.
        """
        own = {key: changes.pop(key, getattr(self, key)) for key in _OWN}
        inputs = changes.pop("inputs", self.inputs)
        changes = PREPROCESSING.get(str(changes.get("preprocessing")), {}) | changes
        check_names(type(inputs), changes)
        return Model(self.module, **own, inputs=dataclasses.replace(inputs, **changes) if changes else inputs)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next((each.device for each in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type it computes in."""
        return next((each.dtype for each in self._tensors() if each.is_floating_point()), torch.float32)

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device; returns itself.

        Raises:
            InputError: If there is no such device here.
        """
        to_device(self.module, device)
        return self

    # ----------------------------------------------------------------------------------------- in
    def preprocess(self, images: Any) -> Tensor:
        """Bring images into image space.

        Args:
            images: What `inputs` takes. Of images a path, bytes of a file, PIL image, array ((H, W) or (H, W, C),
                uint8, uint16 or [0, 1]), tensor ((C, H, W) or (N, C, H, W)), or a list of these. Tensors are taken as
                they are, all else is resized.

        Returns:
            (N, C, H, W) on the model's device, in its dtype; float32 for a model in half precision.

        Raises:
            InputError: If something is no image, or the sizes differ and the model has no `size`.
        """
        batch = self.inputs.batch(images).to(self.device)
        real = torch.float32 if self.dtype in HALF else self.dtype
        return batch.to(real) if batch.is_floating_point() else batch

    def about(self, samples: Sequence[int]) -> Model:
        """The model that some samples are asked of, by their positions in a call: each may have a region of its own."""
        output = self.output.of(samples)
        return self if output is self.output else self.replace(output=output)

    def leaf(self, images: Tensor) -> Tensor:
        """What gradients are taken of: a batch itself, or what the embedding makes of token ids.

        Raises:
            ModelError: If the network reads the ids in another way beside.
        """
        leaf = self.inputs.leaf(self.module, images)
        if leaf is not images and self.module not in _READS_LEAF:
            with torch.no_grad():
                ours, theirs = self.logits(leaf), self.logits(images)
            if not torch.allclose(ours, theirs, 1e-3, 1e-3 * float(theirs.abs().max())):
                raise ModelError(f"{self.name} reads token ids in another way than by their embedding: not supported")
            _READS_LEAF.add(self.module)
        return leaf

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in image space as the network sees them."""
        return self.inputs.normalise(images)

    # ----------------------------------------------------------------------------------------- out
    def scores(self, normalised: Tensor) -> Tensor:
        """What the network itself gives for what it sees, (N, K) in its own dtype.

        Raises:
            ModelError: If it fails, or returns something else than promised.
        """
        halved = self.dtype in HALF and normalised.is_floating_point()
        seen = normalised.to(self.dtype) if halved else normalised
        try:
            with forward_of(self.module, self.name), differentiable():
                returned = self._run(seen)
        except RatherThanError:
            raise
        except _FAILURES as error:
            what = f"{self.name} fails on {self.inputs.name} of shape {tuple(normalised.shape)}: {first_line(error)}"
            raise ModelError(what + self._advice(seen, error)) from error
        return self.output.scores(returned, len(normalised), self.name)

    def _run(self, seen: Tensor) -> Any:
        def call(batch: Tensor) -> Any:
            return self.module(batch) if self.forward is None else self.forward(self.module, batch)

        return self.output.run(partial(self.inputs.run, self.module, call), seen, self)

    def _advice(self, seen: Tensor, error: Exception) -> str:
        """What to do about a network that fails, where that can be found out."""
        kinds = {type(each) for each in self.module.modules()}
        if self.inputs.name == "images" and nn.Conv3d in kinds and nn.Conv2d not in kinds:
            return "; of volumes, (N, C, D, H, W) or one (C, D, H, W), say Model(net, inputs=Volumes())"
        if doubt := self.inputs.doubt(seen):
            return doubt
        if any(each.is_inference() for each in self._tensors()):
            return "; it was made under torch.inference_mode: make it outside"
        if isinstance(error, TypeError) and "argument" in str(error):
            return "; give further arguments by Model(net, forward=lambda m, x: m(x, ...))"
        with suppress(Exception), torch.no_grad():
            self._run(seen[:1])
            return "; one image by itself works: give batch_size=1" * (len(seen) > 1)
        return ""

    def logits(self, images: Tensor) -> Tensor:
        """Class scores.

        Args:
            images: (N, C, H, W) in image space.

        Returns:
            (N, classes); (N, 2) for a sigmoid classifier, -y/2 and y/2 so that their difference is its log-odds and
            either class has a plain map; (N, 1) for a regressor. At least float32.

        Raises:
            ModelError: If the network fails, or returns something else than promised.
        """
        if not images.is_floating_point() and (images < 0).any():  # texts of several lengths
            return self._by_length(images)
        scores = self.scores(self.normalise(images))
        return self.output.logits(scores.float() if scores.dtype in HALF else scores, self.name)

    def _by_length(self, ids: Tensor) -> Tensor:
        lengths = (ids >= 0).sum(1)
        rows = [(lengths == length).nonzero().flatten() for length in sorted(set(lengths.tolist()))]
        parts = [self.logits(ids[some, : int(lengths[some[0]])]) for some in rows]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    @torch.no_grad()
    def check(self, logits: Tensor, images: Tensor, start: int = 0) -> None:
        """Refuse logits no explanation can be made of.

        Args:
            logits: (N, classes).
            images: (N, C, H, W), what they were computed of; where there is a doubt, they are looked at once more.
            start: Number of the first sample.

        Raises:
            ModelError: If they are not finite, are something else than `output` says, do not fit the class names, or
                depend on which images share a batch.
        """
        if bad := (~logits.isfinite()).any(1).nonzero().flatten().tolist():
            what = f"the model gives NaN or infinite scores for sample {start + bad[0]}"
            raise ModelError(f"{what}: check weights and input")
        self.output.check(logits, lambda: plain_ending(logits) or self._ending(images.clone()))
        self._check_apart(images[:1].clone())
        if self.class_names is not None and self.output.of_classes and len(self.class_names) != logits.shape[1]:
            single = "; if its only output is a value, give output='value'; if log-odds, the names of both sides"
            hint = single * (len(self.class_names) == 1 and logits.shape[1] == 2)
            raise ModelError(f"{len(self.class_names)} class names for a model with {logits.shape[1]} classes{hint}")

    def _ending(self, images: Tensor) -> str:
        ending = Ending()
        with suppress(ModelError), ending:
            return ending.of(self.scores(self.normalise(images)))
        return ""

    def _check_apart(self, image: Tensor) -> None:
        """Refuse a network in which images of a batch change each other's logits, as it happens in batch norm."""
        for name, each in self.module.named_modules():
            if isinstance(each, _BatchNorm) and each.running_mean is None:
                alone, together = (self.logits(batch)[0] for batch in (image, torch.cat([image, 1 - image / 2])))
                if (alone - together).abs().max() > 1e-2 * alone.abs().max():
                    one = "forward=lambda m, x: torch.cat([m(image) for image in x.split(1)])"
                    what = f"{self.name} lets the images of a batch change each other's logits"
                    raise ModelError(f"{what}: layer {name!r} keeps no running statistics. Run one at a time: {one}")
                return

    # ----------------------------------------------------------------------------------------- inside
    @contextmanager
    def differentiated(self) -> Iterator[None]:
        """Say in one line why PyTorch cannot go back through the network, where it cannot.

        Raises:
            ModelError: If so.
        """
        try:
            yield
        except (LayerError, RuntimeError) as error:
            quantised = any("quantized" in type(each).__module__ for each in self.module.modules())
            about = "grad" in str(error) or "differentiated" in str(error)
            if (isinstance(error, RatherThanError) or not about) and not (quantised and isinstance(error, LayerError)):
                raise
            why = "it is quantised" if quantised else "it detaches its output from its input"
            if "use_reentrant" in str(error):
                why = "a part is checkpointed by re-entering: give torch.utils.checkpoint use_reentrant=False"
            raise ModelError(f"no gradient of {self.name} can be taken: {why}; or use 'occlusion' or 'lime'") from error

    def check_images(self, who: str) -> None:
        """Refuse what `explain` alone takes.

        Args:
            who: What is about images, and classes of which one holds.

        Raises:
            ModelError: If the network takes other inputs, or gives independent labels.
        """
        self.check_exclusive(who)
        if self.output.one_by_one:
            raise ModelError(f"{who} asks about many images; give one region for all of them")
        self.check_takes(who, "images", ": use explain")

    def check_takes(self, who: str, kind: str, instead: str) -> None:
        """Refuse a network that takes another kind of input.

        Args:
            who: What is about that kind.
            kind: Its name, see `Inputs`.
            instead: The end of the message.

        Raises:
            ModelError: If so.
        """
        if self.inputs.name != kind:
            raise ModelError(f"{who} is about {kind}; {self.name} takes {self.inputs.name}{instead}")

    def check_exclusive(self, who: str) -> None:
        """Refuse independent labels.

        Args:
            who: What is about one class among others.

        Raises:
            ModelError: If the network gives them.
        """
        if not self.output.exclusive:
            one = "Model(net, ['not A', 'A'], forward=lambda m, x: m(x)[:, [0]])"
            raise ModelError(f"{who} is about classes of which one holds, not labels: ask about one label, {one}")

    def check_open(self) -> None:
        """Refuse a module that cannot be looked into.

        Raises:
            LayerError: If it is scripted or traced.
        """
        if isinstance(self.module, torch.jit.ScriptModule):
            instead = "hand in the module it was made from, or explain the image, e.g. by ixg or occlusion"
            raise LayerError(f"{self.name} is scripted or traced, and its layers cannot be looked into: {instead}")

    def submodule(self, layer: str | nn.Module) -> nn.Module:
        """The layer with this dotted name, or this module itself if it is part of the network.

        Raises:
            LayerError: If it is not there.
        """
        if isinstance(layer, nn.Module):
            if not any(layer is module for module in self.module.modules()):
                raise LayerError(f"the layer {type(layer).__name__} is no part of {self.name}; name one of its modules")
            return layer
        found = self.module
        for part in str(layer).split("."):  # a step at a time: listing all modules takes a twentieth of a forward pass
            if part not in found._modules:
                names = (name for name, _ in self.module.named_modules(remove_duplicate=False) if name)
                raise LayerError(unknown("layer", layer, names))
            found = found.get_submodule(part)
        return found

    def _tensors(self) -> Iterable[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()


def fingerprint(given: nn.Module | Tensor) -> str:
    """A hash of a module's kind and of all that it has learnt; or of a tensor."""
    digest = hashlib.sha256(type(given).__name__.encode())
    for name, tensor in ({"": given} if isinstance(given, Tensor) else given.state_dict()).items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + content.tobytes())
    return digest.hexdigest()[:32]
