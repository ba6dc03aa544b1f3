"""Make study.md: does the contrast map, or the plain one, help a judge to foretell what a network says?

    python docs/results/study.py [--images 30] [--judges 20] [--zoo runs/zoo]

Simulated judges, not people. $RATHERTHAN_DATA holds flowers102/; the network is what `ratherthan train zoo:flowers102`
makes. What the judges are made of is kept in runs/results/study.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import data
from ratherthan.app import study

HERE, KEPT = Path(__file__).parent, Path("runs/results/study")
LOOKED_AT = 1600  # photographs, evenly spread over valid and test, among which doubtful ones are found
DOUBT = 0.1  # the second probability is at least this, as in the tables on masking
TAUGHT = 510  # training photographs whose features the judges know
GREY = 0.5
Judge = Callable[[dict[str, Any]], str]


# --------------------------------------------------------------------------------------------- what is asked
def doubtful(model: rt.Model, images: data.Dataset, count: int) -> data.Dataset:
    """The first photographs whose second class is likely enough."""
    chosen: list[int] = []
    with torch.no_grad():
        for places, pictures, _ in data.batches(images.with_transform(model.inputs.prepare), 16):
            second = model.logits(model.preprocess(pictures)).softmax(1).topk(2).values[:, 1]
            chosen += [int(place) for place, p in zip(places, second, strict=True) if p >= DOUBT]
            if len(chosen) >= count:
                break
    return images.subset(chosen[:count])


# --------------------------------------------------------------------------------------------- who judges
def features(network: rt.Model, images: Tensor) -> Tensor:
    """(N, 1280): what lies before the last layer of EfficientNet-Lite0."""
    kept: list[Tensor] = []
    head = network.module.get_submodule("_fc")
    with head.register_forward_pre_hook(lambda _, given: kept.append(given[0])), torch.no_grad():
        network.logits(images)
    return kept[0]


def schooled(network: rt.Model, known: data.Dataset) -> tuple[Tensor, Tensor]:
    """Features and labels of training photographs."""
    file = KEPT / "features.pt"
    if not file.is_file():
        each: list[tuple[Tensor, Tensor]] = []
        for _, pictures, labels in data.batches(known.with_transform(network.inputs.prepare), 16):
            each.append((features(network, network.preprocess(pictures)), labels))
        torch.save(tuple(torch.cat(column) for column in zip(*each, strict=True)), file)
    seen, labels = torch.load(file, weights_only=True)
    return seen, labels


def learnt(seen: Tensor, labels: Tensor, classes: int, judge: int) -> nn.Linear:
    """What one judge has learnt: a linear layer, from photographs drawn with replacement."""
    torch.manual_seed(judge)
    drawn = torch.randint(len(seen), (len(seen),))
    layer = nn.Linear(seen.shape[1], classes)
    optimiser = torch.optim.AdamW(layer.parameters(), 3e-3, weight_decay=1e-2)
    for _ in range(60):
        for rows in drawn[torch.randperm(len(drawn))].split(250):
            loss = nn.functional.cross_entropy(layer(seen[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return layer.requires_grad_(requires_grad=False)


def weighed(results: dict[str, rt.Explanation], trial: dict[str, Any]) -> Tensor:
    """What a judge sees: the photograph with its part covered, grey where the map says nothing for either side."""
    first = next(iter(results.values()))
    row = first.names.index(trial["image"])
    image = first.images[row].clone()
    if trial["condition"] != study.BARE:
        map_ = results[trial["condition"]][row].heatmap()[0].abs()
        image = GREY + (image - GREY) * map_ / map_.max().clamp_min(1e-12)
    image[:, *study.window(trial["part"], *image.shape[1:])] = GREY
    return image


def share_inside(results: dict[str, rt.Explanation], trial: dict[str, Any]) -> float:
    """The share of what speaks for the fact that lies in the part."""
    first = next(iter(results.values()))
    row = first.names.index(trial["image"])
    gain = results[trial["condition"]][row].heatmap()[0].clamp_min(0)
    return float(gain[study.window(trial["part"], *gain.shape)].sum() / gain.sum().clamp_min(1e-12))


def networks(results: dict[str, rt.Explanation], key: dict[str, Any], eye: rt.Model, known: Any) -> Iterator[Judge]:
    """Judges that look at the weighed photograph, and know flowers."""
    seen, labels = known
    names = list(next(iter(results.values())).class_names or ())
    asked = {(each["image"], each["condition"]): each for each in key["trials"]}
    pictures = torch.stack([weighed(results, each) for each in asked.values()])
    looked = torch.cat([features(eye, eye.preprocess(part)) for part in pictures.split(16)])
    place = {each: i for i, each in enumerate(asked)}
    for judge in range(1, key["judges"] + 1):
        said = learnt(seen, labels, len(names), judge)(looked)

        def answer(trial: dict[str, Any], said: Tensor = said) -> str:
            scores = said[place[trial["image"], trial["condition"]]]
            return max((trial["fact"], trial["foil"]), key=lambda name: float(scores[names.index(name)]))

        yield answer


def readers(results: dict[str, rt.Explanation], key: dict[str, Any]) -> Iterator[Judge]:
    """Judges that know no flowers: the foil, if enough of what speaks for the fact is covered; each has its measure."""
    for judge in range(1, key["judges"] + 1):
        draw = torch.Generator().manual_seed(judge)
        enough = 0.3 + 0.4 * torch.rand((), generator=draw).item()

        def answer(trial: dict[str, Any], enough: float = enough, draw: torch.Generator = draw) -> str:
            if trial["condition"] == study.BARE:
                return str(trial["fact" if torch.rand((), generator=draw) < 0.5 else "foil"])
            return str(trial["foil" if share_inside(results, trial) > enough else "fact"])

        yield answer


def answered(key: dict[str, Any], judges: Iterator[Judge], folder: Path) -> list[Path]:
    """A file of each judge, as a page would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, judge in enumerate(judges, 1):
        own = [each for each in key["trials"] if each["judge"] == number]
        rows = [{"trial": each["trial"], "said": judge(each), "seconds": 0.0} for each in own]
        told = {"kind": study.ANSWERS, "schema_version": 1, "study": key["study"], "judge": number, "answers": rows}
        told["agreed"] = True  # programs are not asked
        files.append(folder / f"judge-{number:02d}.json")
        files[-1].write_text(json.dumps(told))
    return files


# --------------------------------------------------------------------------------------------- the page
TEXT = """\
# Does a map help to foretell what a network says? Simulated judges

`python docs/results/study.py --zoo runs/zoo`. A trial run of the [kit for studies](../study.md): the judges
are programs, so this tells how much of an answer is in a map for such programs, not what people would make of
it. The network is `zoo:flowers102` (SqueezeNet, `--epochs 4`), on photographs
of Flowers-102 (valid and test) whose runner-up has {doubt:.0%} or more. Of {asked} photographs {images} have
two parts of equal size of which one, covered by grey, leaves the name and the other makes it the runner-up's.
{judges} judges see each once: with the plain map of Grad-CAM, with the weighted contrast, or with none."""
KINDS = {
    "networks": f"""\
A linear layer on the features of EfficientNet-Lite0, trained on photographs drawn with replacement out of
{TAUGHT} training photographs, another for each judge. It sees the photograph with the part covered, and grey
where the map says nothing for or against; without a map the covered photograph. It says the likelier of the
two names.""",
    "readers": """\
They know no flowers, and look at the map only: they say the runner-up if more of what speaks for the name
than a share of their own (0.3 to 0.7, at random) lies in the part. Without a map they guess.""",
}


def tables(key: dict[str, Any], files: list[Path]) -> str:
    """What `ratherthan study results` says, as Markdown."""
    told = study.marked(key, [study.read(file, study.ANSWERS) for file in files])
    found = study.analysed(told, key["conditions"])
    rows = ["| condition | right (95 %) | answers |", "| --- | --- | ---: |"]
    for each in found["accuracies"].to_dict("records"):
        share = f"{each['accuracy']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
        rows.append(f"| {each['condition']} | {share} | {each['answers']} |")
    rows += ["", "| difference | (95 %) | judges for 0.05 | for 0.1 |", "| --- | --- | ---: | ---: |"]
    for each in found["differences"].to_dict("records"):
        gap = f"{each['difference']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
        rows.append(
            f"| {each['condition']} - {each['other']} | {gap} | {each['judges_005']:.0f} | {each['judges_010']:.0f} |"
        )
    return "\n".join(rows)


def judged(model: rt.Model, images: int, judges: int) -> None:
    """Make the study, and let judges of both kinds answer."""
    eye = rt.load("zoo:efficientnet_lite0")
    photographs = doubtful(model, data.load("flowers102", split="valid+test").spread(LOOKED_AT), images)
    found = rt.compare(model, photographs, foil="runner-up", methods=["gradcam"], contrasts=["none", "weighted"])
    shutil.rmtree(KEPT / "study", ignore_errors=True)
    key = study.make(found, model, KEPT / "study", judges, bare=True, baseline=GREY)
    print(key["images"], "images;", key["left_out"], "left out", flush=True)
    results = dict(zip(key["conditions"], found, strict=False))
    known = schooled(eye, data.load("flowers102", split="train").spread(TAUGHT))
    answered(key, networks(results, key, eye, known), KEPT / "networks")
    answered(key, readers(results, key), KEPT / "readers")


def main() -> None:
    """Ask the judges, unless they have answered, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--judges", type=int, default=20)
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    if len(list((KEPT / "readers").glob("*.json"))) < asked.judges:
        weights = asked.zoo / "flowers102.safetensors"
        judged(rt.load("zoo:flowers102", weights=weights), asked.images, asked.judges)
    key = study.read(KEPT / "study" / "key.json", study.KEY)
    parts = [TEXT.format(doubt=DOUBT, asked=key["images"] + key["left_out"], **key)]
    for name, about in KINDS.items():
        parts.append(f"## {name.capitalize()}\n\n{about}\n\n{tables(key, sorted((KEPT / name).glob('*.json')))}")
    (HERE / "study.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
