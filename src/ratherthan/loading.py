"""Getting hold of a model: from the zoo, transformers, torchvision, timm, an exported program or a Python file."""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
import warnings
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ratherthan.errors import InputError, ModelError, first_line, see, told_as, unknown
from ratherthan.files import read_text
from ratherthan.inputs import Images, Text
from ratherthan.model import Model
from ratherthan.outputs import NextToken, Prompts
from ratherthan.weights import describe, fit_weights

_ALIKE = 2 / 255  # mean difference, in image space, of two ways to prepare noise that are called the same


@torch.inference_mode(False)  # what is made inside could never be explained
def load(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    device: str | torch.device = "cpu",
    trust_code: bool = False,
    **settings: Any,
) -> Model:
    """Load a model by name.

    Args:
        spec: "zoo:NAME"; "hf:NAME or folder" (transformers), or the folder by itself; "torchvision:NAME"; "timm:NAME",
            also "timm:hf-hub:NAME" and "timm:local-dir:FOLDER"; "hf-clip:NAME or folder" (images and descriptions,
            which are the `class_names`); "hf-text:NAME or folder" (a classifier of texts); "hf-lm:NAME or folder" or
            "gguf:FILE" (a causal language model); a ".pt2" exported program; or "file.py:factory", a function without
            arguments that returns the module. PyTorch unpickles parts of a ".pt2", so opening one can run code hidden
            in it: only open those you trust.
        weights: A safetensors file, or a state dict that PyTorch saved (read with `weights_only=True`, which runs no
            code); None: those published under the name. For a file, torchvision and timm networks are built with one
            output per name in `class_names`, if given.
        class_names: Names, or a file of them (see `read_class_names`).
        device: Where to put it.
        trust_code: Allow "file.py:factory", which runs that file.
        **settings: Any argument of `Model`, overriding what the source says.

    Returns:
        The model, in eval mode.

    Raises:
        InputError: If the name is unknown or an extra is missing.
        ModelError: If the weights cannot be read or do not fit.

    Example:
        >>> model = load("zoo:mnist")
    """
    spec = str(spec)
    names = read_class_names(class_names) if isinstance(class_names, (str, Path)) else class_names
    with told_as(InputError, "no model has such a name", OSError):
        known_by_config = (config := Path(spec) / "config.json").is_file()
    if known_by_config:  # timm's tells an architecture, that of transformers several
        spec = f"timm:local-dir:{spec}" if b'"architecture"' in config.read_bytes() else f"hf:{spec}"
    kind, _, name = spec.partition(":")
    if kind in _LOADERS and name:
        blank, what = {} if names is None else {"num_classes": len(names)}, f"{spec}: its weights cannot be fetched"
        with told_as(ModelError, what, OSError, RuntimeError, then="; give weights=FILE"):
            module, known = _LOADERS[kind](name, weights, blank)
        if tokenizer := known.pop("tokenizer", None):
            if names is None:
                raise InputError(f"{spec} has no classes of its own: give descriptions as class_names")
            known["output"], names = Prompts(tuple(names), tokenizer), None
        model = Model(module, **known)
    elif spec.endswith(".pt2"):
        model = _load_exported(Path(spec), weights)
        if all(settings.get(key) is None for key in ("mean", "std", "inputs", "preprocessing")):
            warnings.warn(f"{spec} tells no mean and std: images are not normalised; give both", stacklevel=2)
    elif ".py:" in spec:
        model = _load_factory(spec, trust_code)
    else:
        if Path(spec).is_file():
            usual = f"seems to hold weights: name their network, e.g. load('torchvision:resnet50', weights={spec!r})"
            raise InputError(f"{spec!r} {describe(Path(spec)) or usual}")
        sources = ", ".join(f"{each}:NAME" for each in _LOADERS)
        from ratherthan.zoo import names as in_zoo

        gone = "there is no such file; " if Path(spec).suffix and not Path(spec).exists() else ""
        close = get_close_matches(name or spec, in_zoo(), n=1)
        hint = f"did you mean 'zoo:{close[0]}'? Or " if close else gone
        raise InputError(f"model {spec!r}: {hint}give one of {sources}, a .pt2 file or file.py:factory")
    if weights is not None and kind != "zoo":  # an entry of the zoo reads its weights itself
        others = "; if its classes are others, give class_names=" * (names is None and kind in ("torchvision", "timm"))
        fit_weights(model.module, weights, hint=others)
    for each in model.module.modules():
        each.training = False
    given = {key: value for key, value in {"name": spec, "class_names": names, **settings}.items() if value is not None}
    return model.replace(**given).to(device)


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a file.

    Args:
        path: JSON (a list of names, a list of [identifier, name], or an object {index: name}) or text, one name a line.

    Returns:
        The names in class order. An object's names are ordered by its keys, which are 0, 1, 2, ... or 1, 2, 3, ...

    Raises:
        InputError: If the file cannot be read or has another form, an index or a line is missing, or a name is no text.
    """
    where = f"class names: {str(path)!r}"
    what = f"class names: cannot read {str(path)!r}"
    with told_as(InputError, what, ValueError, RecursionError):  # no file, text, JSON
        text = read_text(path)
        names = json.loads(text) if str(path).endswith(".json") else text.rstrip().split("\n")
    if isinstance(names, dict):
        first = 0 if "0" in names else 1
        keys = [str(index) for index in range(first, first + len(names))]
        if missing := [key for key in keys if key not in names]:
            raise InputError(f"{where} names {len(names)} classes, but none has the index {missing[0]}")
        names = [names[key] for key in keys]
    if isinstance(names, list):
        names = [each[-1] if isinstance(each, list) and each else each for each in names]
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(f"{where} should hold a list of names or an object of index: name")
    for index, name in enumerate(names := [name.strip() for name in names]):
        if not name or any("\ud800" <= letter <= "\udfff" for letter in name):
            wrong = "half a character" if name else "empty"
            raise InputError(f"{where}: name {index} is {wrong}; each class needs one")
    return names


# each source gives the network, and the arguments of `Model` that it knows
_Weights = str | Path | None
_Loaded = tuple[nn.Module, dict[str, Any]]


def _load_zoo(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    from ratherthan.zoo import registry as zoo

    entry = zoo.get(name)
    known = {"inputs": entry.inputs, "layer": entry.layer, "output": entry.output}
    return zoo.load_weights(entry, weights), known | {"class_names": zoo.class_names(entry, weights) or None}


def _load_hf(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    transformers = _extra("transformers", "hf")
    with told_as(ModelError, f"hf:{name}", OSError, ValueError, KeyError):
        module = transformers.AutoModelForImageClassification.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    channels = getattr(module.config, "num_channels", None)
    inputs = Images.of(module, channels=channels, **_hf_settings(processor.to_dict()))
    _check_prepares_alike(inputs, processor, name)
    return module, {"class_names": _hf_labels(module), "inputs": inputs}


def _hf_labels(module: Any) -> list[str]:
    labels = module.config.id2label
    return [str(labels[i]) for i in sorted(labels)]


def _hf_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What an image processor does, in the words of `Images`."""
    scale = 255 * config["rescale_factor"] if config.get("do_rescale") else 255
    offset = 1 if config.get("rescale_offset") else 0
    normalised = config.get("do_normalize")
    mean = np.atleast_1d(config["image_mean"] if normalised else 0.0)
    std = np.atleast_1d(config["image_std"] if normalised else 1.0)
    settings: dict[str, Any] = {"mean": (mean + offset) / scale, "std": std / scale}
    if not config.get("do_resize"):
        return settings
    edge, share = (config.get("size") or {}).get("shortest_edge"), config.get("crop_pct")
    size = {"height": edge, "width": edge} if edge else config["size"]
    crop = config["crop_size"] if config.get("do_center_crop") else size
    warped = not edge or (share and not config.get("do_center_crop") and edge >= 384)  # as ConvNeXt's processor does
    kept = share if share and not warped else crop["height"] / size["height"]
    # where the processor pads, the check that follows finds the difference
    settings |= {"size": (crop["height"], crop["width"]), "crop_fraction": min(kept, 1.0)}
    interpolation = Image.Resampling(config.get("resample", 2)).name.lower()
    return settings | {"fit": "resize" if warped else "crop", "interpolation": interpolation}


def _check_prepares_alike(inputs: Images, processor: Any, name: str) -> None:
    """Refuse an image processor that does something else than `Images` can: each has its own ways.

    Noise shows what a smooth picture hides: shifted by a pixel its values differ by tens of 255, while other ways to
    round differ by less than one in the mean, at odd proportions too.
    """
    random = np.random.default_rng(0)
    for height, width in ((300, 400), (200, 900)):
        noise = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        picture = noise if inputs.channels == 3 else noise.convert("L")
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
        ours = inputs.normalise(inputs.batch(picture))
        std = ours.new_tensor(inputs.std or (1.0,)).view(-1, 1, 1)
        if theirs.shape != ours.shape or ((theirs - ours) * std).abs().mean() > _ALIKE:
            what = f"hf:{name}: its {type(processor).__name__} prepares images in a way that is not known here"
            raise ModelError(f"{what}; hand its network to Model(...) and explain tensors")


def _load_hf_clip(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    transformers = _extra("transformers", "hf")
    with told_as(ModelError, f"hf-clip:{name}", OSError, ValueError, KeyError):
        module = transformers.AutoModel.from_pretrained(name)
        processor = transformers.AutoProcessor.from_pretrained(name)
    inputs = Images.of(module, **_hf_settings(processor.image_processor.to_dict()))
    _check_prepares_alike(inputs, processor.image_processor, name)
    return module, {"inputs": inputs, "tokenizer": processor.tokenizer}


def _load_hf_text(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    transformers = _extra("transformers", "hf")
    with told_as(ModelError, f"hf-text:{name}", OSError, ValueError, KeyError):
        module = transformers.AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return module, {"class_names": _hf_labels(module), "inputs": Text(tokenizer)}


def _load_hf_lm(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    return _language_model(f"hf-lm:{name}", name)


def _load_gguf(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    if not Path(name).is_file():
        raise ModelError(f"there is no file {name!r}")
    _extra("gguf", "lm")
    return _language_model(f"gguf:{name}", str(Path(name).parent), gguf_file=Path(name).name)


def _language_model(spec: str, name: str, **more: Any) -> _Loaded:
    transformers = _extra("transformers", "hf")
    with told_as(ModelError, spec, OSError, ValueError, KeyError, ImportError):
        module = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **more)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **more)
    return module, {"inputs": Text(tokenizer), "output": NextToken()}


def _load_torchvision(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    models = _extra("torchvision", "hub").models
    if name not in models.list_models(module=models):
        raise InputError(unknown("torchvision model", name, models.list_models(module=models)))
    published = models.get_model_weights(name).DEFAULT
    transform = published.transforms()
    module = models.get_model(name, **({"weights": published} if weights is None else blank))
    size, share = transform.crop_size[0], transform.crop_size[0] / transform.resize_size[0]
    known = {"class_names": published.meta["categories"], "mean": transform.mean, "std": transform.std, "size": size}
    return module, known | {"fit": "crop", "crop_fraction": share, "interpolation": transform.interpolation.value}


def _load_timm(name: str, weights: _Weights, blank: dict[str, int]) -> _Loaded:
    timm = _extra("timm", "hub")
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise InputError(unknown("timm model", name, timm.list_models()))
    module = timm.create_model(name, **({"pretrained": True} if weights is None else blank))
    config = timm.data.resolve_model_data_config(module)
    imagenet, names = timm.data.infer_imagenet_subset(module), module.pretrained_cfg.get("label_names")
    names = timm.data.ImageNetInfo(imagenet).label_descriptions() if imagenet and not names else names
    fit, (channels, *size) = "resize" if config["crop_mode"] == "squash" else "crop", config["input_size"]
    known = {key: config[key] for key in ("mean", "std", "interpolation")} | {"crop_fraction": config["crop_pct"]}
    return module, known | {"class_names": names, "size": size, "fit": fit, "channels": channels}


def _load_exported(path: Path, weights: _Weights) -> Model:
    if weights is not None:
        raise InputError(f"{str(path)!r} holds its own weights; leave weights out")
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{str(path)!r} is no exported program: save one by torch.export.save")
    with told_as(ModelError, f"{str(path)!r} is no exported program", Exception):  # whatever a damaged archive raises
        return Model(torch.export.unflatten(torch.export.load(path)))


def _load_factory(spec: str, trust_code: bool) -> Model:
    path, _, factory = spec.rpartition(":")
    if not trust_code:
        raise InputError(f"{spec!r} would run code; import {factory} yourself and hand over its module")
    if not Path(path).is_file():
        raise InputError(f"there is no Python file {path!r}")
    sys.path.insert(0, str(Path(path).parent.resolve()))  # like a script it may import its neighbours
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no answer
            made = runpy.run_path(path, run_name=f"ratherthan_factory_{Path(path).stem}")[factory]()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it may end the program, or raise what is no Exception
        raise ModelError(f"{spec}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, (Model, nn.Module)):
        raise ModelError(f"{spec} returns {type(made).__name__}: a torch.nn.Module is needed")
    return Model.wrap(made)


def _extra(package: str, extra: str) -> Any:
    what = f"{package} cannot be imported (pip install 'ratherthan[{extra}]')"
    with told_as(InputError, what, ImportError, RuntimeError, then=see("a-package-is-missing")):
        return importlib.import_module(package)


_LOADERS = {
    "zoo": _load_zoo, "hf": _load_hf, "torchvision": _load_torchvision, "timm": _load_timm,
    "hf-clip": _load_hf_clip, "hf-text": _load_hf_text, "hf-lm": _load_hf_lm, "gguf": _load_gguf,
}  # fmt: skip
