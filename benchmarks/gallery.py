"""The pictures of docs/gallery.md: every method under every contrast, image quality, all foils at once.

    python benchmarks/gallery.py readme --data DIR
    python benchmarks/gallery.py methods --data DIR
    python benchmarks/gallery.py foils --data DIR
    python benchmarks/gallery.py atlas
    python benchmarks/gallery.py quality
    python benchmarks/gallery.py tid2013 --data DIR

`--data` is the folder with squeezenet/ and contrastive_examples/ (by default RATHERTHAN_DATA); pictures go to `--out`,
docs/gallery by default. Photographs are those of scikit-image unless `--photo` names another.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import avg_pool2d

import ratherthan as rt
from ratherthan import Method, RatherThanError, compare
from ratherthan.data import to_tensor
from ratherthan.render.colours import FADED, as_rgb, overlay, sequential, shared_limit
from ratherthan.render.figure import grid
from ratherthan.replication.distortions import distort, structural_similarity
from ratherthan.replication.quality import compare_quality, quality_figure

CONTRASTS = ("none", "mean", "max", "weighted")


def settings() -> dict[str, Method]:
    """Methods whose defaults are finer than a thumbnail can show."""
    return {
        "smoothgrad": rt.SmoothGrad(samples=16),
        "ig": rt.IntegratedGradients(n_steps=24),
        "pda": rt.PredictionDifference(window=32, stride=16, samples=4),
        "lime": rt.Lime(samples=400),
    }


def methods(arguments: argparse.Namespace) -> Figure:
    """The same photograph under every registered method and four contrasts."""
    model, image = squeezenet(arguments.data), photograph(arguments.photo or "chelsea")
    image = model.preprocess(image)
    picture = image[0].permute(1, 2, 0).numpy()
    panels, chosen = [], settings()
    for name in rt.methods():
        started = time.perf_counter()
        try:
            found = compare(model, image, methods=[chosen.get(name, name)], contrasts=CONTRASTS)
        except RatherThanError as error:
            print(f"{name}: left out, {error}")
            continue
        for why in found:
            values = cells(why)
            panels.append((f"{name} · {why.contrast}", overlay(picture, values, shared_limit([values]))))
        print(f"{name}: {time.perf_counter() - started:.1f} s")
    best = found[0].probabilities()[0].topk(2)
    words = [f"{name_of(model, int(index))} {p:.0%}" for p, index in zip(*best, strict=True)]
    panels.append((", ".join(words), picture))
    return grid(panels, 8, title=f"Why {name_of(model, int(best.indices[0]))}? Each map on its own scale", cell=1.6)


def readme(arguments: argparse.Namespace) -> Figure:
    """The README's picture: two digits with their runner-up, a photograph with several foils."""
    from ratherthan.app.demo import hardest

    digits = rt.load("zoo:mnist")
    images, _ = hardest(digits, 2)
    panels: list[tuple[str, np.ndarray]] = []
    asked: list[tuple[rt.Model, Tensor, list[str]]] = [(digits, image[None], ["runner-up"]) for image in images]
    photo = squeezenet(arguments.data)
    image = photo.preprocess(photograph(arguments.photo or "chelsea"))
    asked.append((photo, image, ["tiger cat", "tabby", "lynx", "Siamese cat"]))
    for model, image, foils in asked:
        plain = rt.explain(model, image, contrast="none")
        contrasted = [rt.explain(model, image, foil=foil) for foil in foils]
        picture = image[0].permute(1, 2, 0).numpy()
        panels.append(("", picture))
        for why in (plain, *contrasted):
            title = why.question(0).replace(", rather", ",\nrather")
            values = why.heatmap()[0].numpy()
            panels.append((title, overlay(picture, values, shared_limit([values]))))
    return grid(panels, 6, cell=1.7)


def cells(why: rt.Explanation) -> np.ndarray:
    """The heatmap; of methods that explain single pixels the relevance of 8 x 8 of them, or nothing would be seen."""
    fine = why.layer is None and why.method not in ("occlusion", "pda", "lime")
    return (avg_pool2d(why.heatmap(), 8) if fine else why.heatmap())[0].numpy()


def foils(arguments: argparse.Namespace) -> Figure:
    """Fig. 3 of contrastive-gradcam: Grad-CAM, one foil, P = Q, variance and mean over all other classes."""
    model = squeezenet(arguments.data)
    image = model.preprocess(photograph(arguments.photo or "chelsea"))
    method = rt.GradCAM(layer="features.12")
    (plain,) = compare(model, image, methods=[method], contrasts=["none"])
    (loss,) = compare(model, image, foil="each", methods=[method], contrasts=["loss"])
    fact, rival = plain.logits[0].topk(2).indices.tolist()
    picture, panels = image[0].permute(1, 2, 0).numpy(), []
    first, second = name_of(model, fact), name_of(model, rival)
    for preset, label in ((None, "signed"), ("prabhushankar2020", "as published")):
        maps = loss.heatmap(preset)[0]
        mean, variance = (each[0].numpy() for each in loss.over_foils(preset))
        signed = {
            f"Why {first}?\n{label}": plain.heatmap(preset)[0].numpy(),
            f"Why {first},\nrather than {second}?": maps[rival].numpy(),
            f"What keeps it from being\nsurer of {first}?": maps[fact].numpy(),
            f"mean over {maps.shape[0] - 1} foils\n{label}": mean,
        }
        panels.append((f"{first} {loss.probabilities()[0, fact]:.0%}\n", picture))
        panels += [(title, overlay(picture, values, shared_limit([values]))) for title, values in signed.items()]
        pale = 255 - FADED * (255 - as_rgb(picture).mean(2, keepdims=True))
        coloured = pale / 255 * sequential(variance, shared_limit([variance])) / 255
        panels.append((f"variance over {maps.shape[0] - 1} foils\n{label}", coloured))
    return grid(panels, 6, cell=2.0)


def atlas(arguments: argparse.Namespace) -> Figure:
    """All 999 foils of a photograph by where they are decided."""
    model, name = rt.load("zoo:efficientnet_lite0"), arguments.photo or "chelsea"
    image = model.preprocess(photograph(name))
    assert model.class_names is not None
    said = int(model.logits(image).argmax())
    data = rt.Dataset(
        "photograph",
        model.class_names,
        (Path(name).name,),
        (said,),
        rt.data.ItemReader([(image[0],)], 0),
        numbered=False,
    )
    with TemporaryDirectory() as folder:
        return rt.audit(model, data, out=folder, places=4).atlas(said)


def quality(arguments: argparse.Namespace) -> Figure:
    """Fig. 4 of contrastive-gradcam on photographs we spoil ourselves."""
    model, explained = rt.load("zoo:iqa", weights=arguments.weights), []
    for source, kind, level in (("rocket", "noise", 4), ("coffee", "jpeg", 5)):
        reference = square_cut(to_tensor(photograph(source), 3), 384, 512)
        spoilt = distort(reference, kind, level, torch.Generator().manual_seed(0))
        explained.append(explain_pair(model, f"{kind}, level {level}", reference, spoilt))
    return quality_figure(explained)


def tid2013(arguments: argparse.Namespace) -> Figure:
    """Fig. 4 on pairs of TID2013, the patches counted as the authors do; these pictures may not be passed on."""
    folder, explained = folder_of(arguments.data) / "contrastive_examples", []
    model = rt.load("zoo:iqa", weights=arguments.weights)
    reference = to_tensor(Image.open(folder / "i21.png"), 3)
    for spoilt in ("i21_03_5", "i21_21_5"):
        distorted = to_tensor(Image.open(folder / f"{spoilt}.png"), 3)
        explained.append(explain_pair(model, spoilt, reference, distorted, "black"))
    return quality_figure(explained)


def explain_pair(
    model: rt.Model, title: str, reference: Tensor, distorted: Tensor, border: str = "inside"
) -> tuple[rt.Explanation, rt.Explanation]:
    started, busy = time.perf_counter(), time.process_time()
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=None)
        why, rather = compare_quality(
            model,
            reference,
            distorted,
            border=border,  # type: ignore[arg-type]
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    seconds, of_cpu = time.perf_counter() - started, time.process_time() - busy
    print(f"{title}: {why.diagnostics['patches']} patches in {seconds:.1f} s ({of_cpu:.1f} s of CPU)")
    similarity = structural_similarity(reference, distorted)
    print(f"{title}: quality {why.logits.item():.3f}, SSIM {similarity:.3f}")
    return replace(why, names=(title,)), rather


def squeezenet(data: str | None) -> rt.Model:
    folder = folder_of(data)
    names = folder / "imagenet_samples/class_names.json"
    weights = folder / "squeezenet/squeezenet1_0_caffe.safetensors"
    return rt.load("zoo:squeezenet1_0", weights=weights, class_names=names)


def folder_of(data: str | None) -> Path:
    if not (data or os.environ.get("RATHERTHAN_DATA")):
        raise SystemExit("name the folder with squeezenet/ and contrastive_examples/: --data DIR")
    return Path(data or os.environ["RATHERTHAN_DATA"])


def photograph(given: str) -> Image.Image:
    """A photograph of scikit-image by name, or a file."""
    from skimage import data

    return Image.fromarray(getattr(data, given)()) if hasattr(data, given) else Image.open(given).convert("RGB")


def square_cut(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def name_of(model: rt.Model, index: int) -> str:
    return model.class_names[index].split(",")[0] if model.class_names else str(index)


PICTURES: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "readme": readme,
    "methods": methods,
    "foils": foils,
    "atlas": atlas,
    "quality": quality,
    "tid2013": tid2013,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("--data", help="folder with squeezenet/ and contrastive_examples/")
    parser.add_argument("--photo", help="a photograph of scikit-image, or a file (methods, foils, atlas)")
    parser.add_argument("--weights", help="weights for zoo:iqa other than those that ship")
    parser.add_argument("--out", default="docs/gallery", help="folder for the pictures")
    arguments = parser.parse_args()
    path = Path(arguments.out) / f"{arguments.picture}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    PICTURES[arguments.picture](arguments).savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size
    print(f"{path} ({path.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
