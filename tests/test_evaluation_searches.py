"""The experiments on searches, each against a plain loop over samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm, spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Counterfactuals, Dataset, Localisation, Pertinent, Run
from ratherthan.search.counterfactual import FRAMES
from ratherthan.search.solver import noise

COUNT, CLASSES, SIDE = 24, 4, 9


def network(seed: int) -> rt.Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    for layer in (module[1], module[3]):  # so that answers fall into all classes
        nn.init.normal_(layer.weight, std=0.3)
    return rt.Model(module, channels=1)


def noise_images(seed: int = 0, count: int = COUNT) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    labels = tuple(i % CLASSES for i in range(count))
    return Dataset("noise", tuple("abcd"), tuple(f"s{i}" for i in range(count)), labels, ArrayReader(pixels))


@dataclass(frozen=True)
class Scripted(rt.CounterfactualMethod):
    """Three answers per image that depend on its number only; every third of them is called not found."""

    name: ClassVar[str] = "scripted"
    any_foil: ClassVar[bool] = True
    size: float = 0.3

    def examples(self, image: Tensor, sample: int) -> Tensor:
        moved = [image + self.size * noise(image.shape, 7, [sample], r)[0] for r in range(3)]
        return torch.stack(moved).clamp(0, 1)

    def found(self, sample: int, restart: int) -> bool:
        return (sample + restart) % 3 != 0 and sample != 5

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        images, samples = question.images, question.positions
        examples = torch.stack([self.examples(image, s) for image, s in zip(images, samples, strict=True)])
        states = [["found" if self.found(s, r) else "not found" for r in range(3)] for s in samples]
        logits = question.fresh(examples)
        path = examples[:, :1].expand(-1, FRAMES, -1, -1, -1)
        path_logits = logits[:, :1] * torch.linspace(0, 1, FRAMES).double().view(1, -1, 1)
        distance = torch.tensor([[float(s + r) for r in range(3)] for s in samples])
        return rt.Counterfactual(
            **rt.Counterfactual.fields_of(self, question),
            statuses=states, reasons=[["scripted"] * 3 for _ in samples], examples=examples, example_logits=logits,
            distance=distance, violation=distance * 0, path=path, path_logits=path_logits,
            latents=distance.unsqueeze(2).expand(-1, -1, 2) * torch.tensor([0.1, -0.2]),
            attributes_before=torch.zeros(len(samples), 3), attribute_names=("a", "b", "c"),
            attributes=torch.tensor([[[s % 2, -(s % 3), 0.001]] * 3 for s in samples]),
        )  # fmt: skip


def measured(tmp_path: Path, **settings: Any) -> Any:
    batch_size = settings.pop("batch_size", None)
    experiment = Counterfactuals(**settings)
    run = rt.evaluate(
        experiment, network(0), noise_images(), out=tmp_path, methods=[Scripted()], batch_size=batch_size, shard_size=8
    )
    return run.to_frame().set_index("sample")


def softmax(module: nn.Module, image: np.ndarray) -> np.ndarray:
    logits = module(torch.from_numpy(image)[None])[0].detach().numpy()
    return np.exp(logits) / np.exp(logits).sum()


def variation(judge: nn.Module, before: np.ndarray, after: np.ndarray, fact: int, foil: int) -> float:
    """Mean Jensen-Shannon divergence of the other classes, each a label by itself, by scipy."""
    p, q = softmax(judge, before), softmax(judge, after)
    others = [i for i in range(CLASSES) if i not in (fact, foil)]
    return float(np.mean([jensenshannon([p[i], 1 - p[i]], [q[i], 1 - q[i]], base=2) ** 2 for i in others]))


def transition(module: nn.Module, before: np.ndarray, after: np.ndarray, fact: int, foil: int) -> float:
    """Pixels one after the other, from the most changed on; the area is a sum of trapezia."""
    order = sorted(range(SIDE * SIDE), key=lambda i: -abs(after - before)[0].flat[i])
    gaps = []
    for step in range(51):
        mixed = before.copy()
        for i in order[: round(step * SIDE * SIDE / 50)]:
            mixed[0].flat[i] = after[0].flat[i]
        p = softmax(module, mixed)
        gaps.append(p[foil] - p[fact])
    return sum((a + b) / 2 / 50 for a, b in pairwise(gaps))


def by_hand(
    index: int, foil: str | int, second: nn.Module, distilled: nn.Module, reference: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """The figures of one sample, in NumPy where torch would be the same code again."""
    module, how = network(0).module, Scripted()
    image = noise_images()[index][0].double()
    before = module(image[None])[0].detach().numpy()
    fact = int(before.argmax())
    answers = how.examples(image, index)
    logits = module(answers).detach().numpy()
    if foil == "runner-up":
        foil = int(np.argsort(before)[-2])
    if foil == "any":
        foil = int(np.argsort(np.where(np.arange(CLASSES) == fact, -np.inf, logits[0]))[-1])
    found = [how.found(index, r) for r in range(3)]
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    third = max(p[i] for i in range(CLASSES) if i not in (fact, foil))
    x, start = answers[0].numpy(), image.numpy()
    kept = [answers[r].numpy() for r in range(3) if found[r]]
    pairs = list(combinations(kept, 2))
    votes, taught = (
        [int(judge(answers[r][None]).argmax()) == foil for r in range(3) if found[r]] for judge in (second, distilled)
    )

    def autoencoded(which: np.ndarray) -> np.ndarray:
        mean = which.mean(0)
        _, _, rows = np.linalg.svd(which - mean, full_matrices=False)
        return mean + (x.ravel() - mean) @ rows[:32].T @ rows[:32]

    of_foil, of_fact, of_all = (
        autoencoded(which) for which in (reference[labels == foil], reference[labels == fact], reference)
    )
    row = {
        "found": float(found[0]),
        "boundary": float(abs(logits[0][fact] - logits[0][foil]) <= 0.5 and third < min(p[fact], p[foil])),
        "third": float(int(p.argmax()) not in (fact, foil)),
        "foil": float(int(p.argmax()) == foil),
        "p_fact": p[fact],
        "p_foil": p[foil],
        "p_third": third,
        "second": np.mean(votes) if votes else np.nan,
        "non_adversarial": np.mean(taught) if taught else np.nan,
        "label_variation": variation(second, start, x, fact, foil),
        "cout": transition(module, start, x, fact, foil),
        "distance": float(index),
        "l1": np.abs(x - start).sum(),
        "l2": np.sqrt(((x - start) ** 2).sum()),
        "sparsity": np.mean(np.abs(x - start) > 0.1),
        "im1": ((x.ravel() - of_foil) ** 2).sum() / ((x.ravel() - of_fact) ** 2).sum(),
        "im2": ((of_foil - of_all) ** 2).sum() / np.abs(x).sum(),
        "density": np.mean(norm.logpdf([0.1 * index, -0.2 * index])),
        "gained": index % 2,
        "lost": index % 3 > 0,
        "diversity": np.mean([np.sqrt(((a - b) ** 2).sum()) for a, b in pairs]) if pairs else np.nan,
        "agreement": (
            np.mean([structural_similarity(a[0], b[0], data_range=1.0) for a, b in pairs]) if pairs else np.nan
        ),
    }
    if not found[0]:
        undefined = "label_variation", "cout"
        row |= dict.fromkeys(
            (*undefined, "distance", "l1", "l2", "sparsity", "im1", "im2", "density", "gained", "lost"), np.nan
        )
    return row


@pytest.mark.parametrize("foil", ["runner-up", "any", 2])
def test_counterfactuals_equals_a_loop(tmp_path: Path, foil: str | int) -> None:
    second, distilled, reference = network(1), network(2), noise_images(3, 400)
    pixels = np.stack([reference[i][0].numpy().ravel() for i in range(400)]).astype(np.float64)
    labels = np.array(reference.labels)
    frame = measured(tmp_path, foil=foil, second=second, distilled=distilled, reference=reference, tolerance=0.5)
    for index in range(COUNT):
        fact = int(network(0).module(noise_images()[index][0].double()[None]).argmax())
        if fact == foil:
            assert f"s{index}" not in frame.index
            continue
        expected = by_hand(index, foil, second.module, distilled.module, pixels, labels)
        actual = frame.loc[f"s{index}", list(expected)].astype(float)
        np.testing.assert_allclose(actual.to_numpy(), np.array(list(expected.values()), float), rtol=2e-3, atol=2e-4)
    # both cases are there to be told apart; where any class will do, no third one can be the likeliest
    assert frame["found"].nunique() == 2
    assert frame["third"].nunique() == (1 if foil == "any" else 2)


@dataclass(frozen=True)
class Becomes(Scripted):
    """Turns every image into one and the same, with one change at a place of its own."""

    name: ClassVar[str] = "becomes"

    def examples(self, image: Tensor, sample: int) -> Tensor:
        image = image.clone()
        image[0, 4, 4] = 1.0
        return image.expand(3, 1, SIDE, SIDE)

    def found(self, sample: int, restart: int) -> bool:
        return True


class OneDecides(nn.Module):
    """Class 1 if the pixel in the middle is bright, class 0 if not; the others never."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 40 * (x[:, 0, 4, 4] - 0.5).sign().clamp_min(0)
        return torch.stack([20 + 0 * bright, bright, -20 + 0 * bright, -20 + 0 * bright], 1)


def test_a_change_of_the_one_pixel_that_decides_has_the_highest_transition_and_varies_no_other_label(
    tmp_path: Path,
) -> None:
    blank = Dataset("blank", tuple("abcd"), ("s",), (0,), ArrayReader(np.zeros((1, SIDE, SIDE), np.uint8)))
    experiment = Counterfactuals(second=OneDecides(), distilled=OneDecides(), foil=1)
    model = rt.Model(OneDecides(), channels=1)
    row = rt.evaluate(experiment, model, blank, out=tmp_path, methods=[Becomes()]).to_frame().iloc[0]
    # -1 at the image itself, 1 from the first of 50 steps on: the trapezia add up to 1 - 1 / 50
    assert row["cout"] == pytest.approx(1 - 1 / 50, abs=1e-6)
    assert row["label_variation"] == pytest.approx(0, abs=1e-6)
    assert row["second"] == row["non_adversarial"] == 1


def test_a_judge_with_other_classes_is_refused(tmp_path: Path) -> None:
    judge = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 7)).double(), channels=1)
    with pytest.raises(rt.InputError, match="has 7 classes, the model 4"):
        measured(tmp_path, distilled=judge)


class Halves(nn.Module):
    """Maps (8 channels) and features (5) of an image, for the distances of sets of images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.maps, self.relu, self.pool = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten()
        self.features, self.head = nn.Linear(8 * 49, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(self.pool(self.relu(self.maps(x)))))
        return result


@pytest.mark.parametrize("layer", ["relu", "features"])
def test_the_frechet_distance_is_that_of_scipy(layer: str) -> None:
    module = Halves().double()
    made, real = (torch.stack([noise_images(seed, 300)[i][0] for i in range(n)]) for seed, n in ((1, 300), (2, 40)))
    made = made * 0.7
    with torch.no_grad():
        maps = [module.relu(module.maps(x.double())) for x in (made, real)]
        sets = [(x.mean((2, 3)) if layer == "relu" else module.features(x.flatten(1))).numpy() for x in maps]
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in sets)
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert rt.frechet_distance(made, real, rt.Model(module, channels=1), layer) == pytest.approx(expected, rel=1e-6)
    assert rt.frechet_distance(made, made, module, layer) == pytest.approx(0, abs=1e-8)


def test_the_frechet_distance_of_two_normal_distributions_has_a_closed_form() -> None:
    """Of independent features: the sum of (m - n)^2 + (s - t)^2."""
    rng, net = np.random.default_rng(0), nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(3, 2))

    def drawn(mean: list[float], deviation: list[float]) -> Tensor:
        raw = rng.normal(size=(60, 3))
        white = (raw - raw.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
        return torch.tensor(white * deviation + mean, dtype=torch.float32).view(60, 3, 1, 1)

    one, other = drawn([0.1, 0.5, 0.2], [0.1, 0.2, 0.3]), drawn([0.4, 0.1, 0.2], [0.3, 0.2, 0.1])
    assert rt.frechet_distance(one, other, net, "1") == pytest.approx(0.3**2 + 0.4**2 + 0.2**2 + 0.2**2, rel=1e-4)


def test_the_frechet_distance_takes_two_images_and_a_layer_of_features() -> None:
    images = torch.rand(4, 1, SIDE, SIDE)
    with pytest.raises(rt.InputError, match="1 and 4 images"):
        rt.frechet_distance(images[:1], images, Halves(), "features")
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(SIDE * SIDE, 6), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(rt.InputError, match=r"1 gives \(1, 6\) of an image"):
        rt.frechet_distance(images, images, tokens, "1")


def test_the_correlation_difference_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    before, after, labels = (rng.integers(0, 2, (count, 5)) for count in (30, 30, 50))
    after[:, 3] = before[:, 3]  # never changes: no correlation
    labels[:, 1] = labels[:, 2]
    expected = 0.0
    for i in range(5):
        made = 0.0 if i == 3 else np.corrcoef((after - before)[:, i], (after - before)[:, 2])[0, 1]
        expected += abs(made - np.corrcoef(labels[:, i], labels[:, 2])[0, 1])
    assert rt.correlation_difference(before, after, labels, 2) == pytest.approx(expected)
    with pytest.raises(rt.InputError, match=r"not \(30, 5\), \(30, 5\), \(50, 4\), 2"):
        rt.correlation_difference(before, after, labels[:, :4], 2)


def test_a_random_foil_is_never_the_fact_and_rows_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    together = measured(tmp_path / "a", foil="random")
    alone = measured(tmp_path / "b", foil="random", batch_size=1)
    numbers = together.select_dtypes("number").columns
    np.testing.assert_allclose(together[numbers], alone[numbers], rtol=1e-9, equal_nan=True)
    assert len(together) == COUNT


def test_the_path_is_kept(tmp_path: Path) -> None:
    frame = measured(tmp_path)
    assert np.allclose(frame["path_fact_00"], 1 / CLASSES)  # the scripted path starts at logits of zero
    assert np.allclose(frame[f"path_foil_{FRAMES - 1:02d}"], frame["p_foil"])
    assert np.allclose(frame[f"path_third_{FRAMES - 1:02d}"], frame["p_third"])


def test_a_foil_that_is_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rt.InputError, match="class 9 does not exist: this model has classes 0 to 3"):
        measured(tmp_path, foil=9)
    with pytest.raises(rt.InputError, match=r"'runner-up' or 'random' or 'any' or a whole number.*not 'best'"):
        Counterfactuals(foil="best")
    with pytest.raises(rt.InputError, match="unknown counterfactual method"):
        rt.evaluate("counterfactuals", network(0), noise_images(), out=tmp_path / "x", methods=["gradcam"])


def test_other_autoencoders_or_judges_are_another_run(tmp_path: Path) -> None:
    measured(tmp_path, second=network(1))
    with pytest.raises(rt.InputError, match="experiment"):
        rt.evaluate(
            Counterfactuals(second=network(2)), network(0), noise_images(), out=tmp_path, methods=[Scripted()],
            shard_size=8, resume=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Guided(Scripted):
    """Has attribute functions."""

    name: ClassVar[str] = "guided"
    attributes: tuple[rt.Attribute, ...] = ()


def test_a_search_with_other_networks_is_another_run(tmp_path: Path) -> None:
    def go(seed: int, **more: Any) -> Run:
        judge = network(seed).module
        method = Guided(attributes=(rt.Attribute(judge, module=judge),))
        return rt.evaluate(
            Counterfactuals(), network(0), noise_images(), out=tmp_path, methods=[method], limit=3, **more
        )

    go(1)
    with pytest.raises(rt.InputError, match=r"another methods\.guided.*attributes"):
        go(2, resume=True)
    go(1, resume=True)


def test_why_not_is_located_for_maps_and_for_searches(tmp_path: Path) -> None:
    box = [[0.0, 0.0, 4 / SIDE, 5 / SIDE]]
    experiment = Localisation(regions={"*": box, "s3": [[0.5, 0.5, 1.0, 1.0]]}, why_not=2)
    run = rt.evaluate(
        experiment, network(0), noise_images(), out=tmp_path, methods=["ixg", Scripted()], contrasts=["none", "mean"],
        shard_size=8,
    )  # fmt: skip
    frame = run.to_frame().set_index(["sample", "method", "contrast"])
    assert Run.open(tmp_path).to_markdown() == run.to_markdown()  # though no regions are at hand when it is opened
    seen = 0
    for index in range(COUNT):
        image = noise_images()[index][0].double()
        leaf = image.clone().requires_grad_()
        logits = network(0).module(leaf[None])[0]
        fact = int(logits.argmax())
        if fact == 2:
            assert f"s{index}" not in frame.index
            continue
        seen += 1
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        inside[(slice(4, 9), slice(4, 9)) if index == 3 else (slice(0, 5), slice(0, 4))] = True
        for method, contrast, score in (
            ("ixg", "none", logits[2]),
            ("ixg", "mean", logits[2] - logits[fact]),
            ("scripted", "", None),
        ):
            row = frame.loc[(f"s{index}", method, contrast)]
            if score is None:
                if not Scripted().found(index, 0):
                    assert np.isnan(row["pointing"])
                    assert np.isnan(row["inside"])
                    continue
                change = (Scripted().examples(image, index)[0] - image)[0].numpy()
            else:
                (gradient,) = torch.autograd.grad(score, leaf, retain_graph=True)
                change = (gradient * image)[0].numpy()
            gain = np.maximum(change, 0)
            assert row["inside"] == pytest.approx(gain[inside].sum() / gain.sum(), rel=1e-4)
            assert row["pointing"] == inside.flat[gain.argmax()]
            assert row["region"] == pytest.approx(inside.mean())
    assert 0 < seen < COUNT
    shown = run.table(intervals=False)["inside"]  # a search has no contrast, and a column of its own
    assert shown.loc["scripted", ""] == f"{frame['inside'].xs('scripted', level='method').mean():.3f}"
    assert shown.loc["scripted", "original"] == shown.loc["Input × Gradient", ""] == ""


@dataclass(frozen=True)
class Interrupted(Scripted):
    """A search that Ctrl-C ends."""

    name: ClassVar[str] = "ended by ctrl-c"

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        return replace(super().search(question), interrupted=True)


@pytest.mark.parametrize("experiment", [Counterfactuals(), Localisation({"*": [[0, 0, 1, 1]]}, why_not=1)])
def test_half_a_search_is_no_result(experiment: rt.Experiment, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="0 of 24 samples done"):
        rt.evaluate(experiment, network(0), noise_images(), out=tmp_path / "run", methods=[Interrupted()])


def test_a_search_cannot_be_located_without_a_class_to_move_to(tmp_path: Path) -> None:
    with pytest.raises(rt.InputError, match="scripted moves towards a class"):
        rt.evaluate(
            Localisation(regions={"*": [[0, 0, 1, 1]]}), network(0), noise_images(), out=tmp_path, methods=[Scripted()]
        )


# --------------------------------------------------------------------------------------------- what is enough
@dataclass(frozen=True)
class Slices(rt.PertinentPositiveMethod):
    """Keeps the first rows, as many as the number of the image says; their order is from below."""

    name: ClassVar[str] = "slices"

    def search(self, question: rt.SearchQuestion) -> rt.PertinentPositive:
        images, samples = question.images, question.positions
        rows = torch.arange(SIDE).view(1, SIDE, 1).expand(len(images), SIDE, SIDE)
        kept = torch.tensor([1 + s % 5 for s in samples])
        mask = rows < kept.view(-1, 1, 1)
        order = torch.stack([torch.tensor([k - 1 - i if i < k else -1 for i in range(5)]) for k in kept.tolist()])
        curve = torch.full((len(images), 6), torch.nan)
        for row, s in enumerate(samples):
            curve[row, : kept[row] + 1] = torch.tensor([0.5, *((s * (i + 1) % 7) / 7 for i in range(int(kept[row])))])
        ends = [(rt.Status.FOUND, "scripted")] * len(images)
        return rt.PertinentPositive.of(
            self, question, images * mask.unsqueeze(1), ends, mask, superpixels=rows, order=order, curve_before=curve
        )


def test_pertinent_equals_a_loop(tmp_path: Path) -> None:
    experiment = Pertinent(superpixels="grid", count=9, baseline=0.25, threshold=0.4)
    run = rt.evaluate(
        experiment, network(0), noise_images(), out=tmp_path, methods=[Slices(), "ixg"], shard_size=8, batch_size=5
    )
    frame = run.to_frame().set_index(["sample", "method", "contrast"])
    with pytest.raises(rt.InputError, match="this run compares"):  # a search has no contrast: there is no pair
        run.difference("weighted", "")
    module = network(0).module
    kept_any = 0
    for index in range(COUNT):
        leaf = noise_images()[index][0].double().requires_grad_()
        logits = module(leaf[None])[0]
        fact, image = int(logits.argmax()), leaf.detach()
        others = [i for i in range(CLASSES) if i != fact]
        for contrast, score in (("none", logits[fact]), ("weighted", logits[fact] - logits[others].logsumexp(0))):
            (gradient,) = torch.autograd.grad(score, leaf, retain_graph=True)
            phi = (gradient * image)[0]
            cells = {
                (r, c): phi[3 * r : 3 * r + 3, 3 * c : 3 * c + 3].mean().item() for r in range(3) for c in range(3)
            }
            bar = max(0.0, 0.4 * max(cells.values()))
            order = sorted((cell for cell in cells if cells[cell] > bar), key=lambda cell: -cells[cell])
            shown, p = torch.full_like(image, 0.25), []
            for r, c in order:
                place = (..., slice(3 * r, 3 * r + 3), slice(3 * c, 3 * c + 3))
                shown[place] = image[place]
                p.append(module(shown[None])[0].softmax(0)[fact].item())
            row = frame.loc[(f"s{index}", "ixg", contrast)]
            assert row["features"] == len(order)
            assert row["share"] == pytest.approx(len(order) / 9)
            if order:
                kept_any += 1
                assert row["p_fact"] == pytest.approx(p[-1], rel=1e-5)
                assert row["kept"] == (int(module(shown[None])[0].argmax()) == fact)
            expected = spearmanr(range(len(p)), [-each for each in p]).statistic if len(p) > 2 else np.nan
            assert row["correlation"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        row, count = frame.loc[(f"s{index}", "slices", "")], 1 + index % 5
        part = image * (torch.arange(SIDE) < count).view(SIDE, 1)
        assert (row["features"], row["share"]) == (count, pytest.approx(count / SIDE))
        assert row["kept"] == (int(module(part[None])[0].argmax()) == fact)
        curve = [(index * (i + 1) % 7) / 7 for i in range(count)]
        known = count > 2 and len(set(curve)) > 1
        expected = spearmanr(range(count), [-each for each in curve]).statistic if known else np.nan
        assert row["correlation"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert kept_any > COUNT
    assert frame["kept"].nunique() == 2


def test_of_lime_all_positive_superpixels_are_the_part(tmp_path: Path) -> None:
    """Whatever the threshold; that of CEM-MAF's other maps leaves some of these out."""
    cells = torch.arange(SIDE).div(3, rounding_mode="floor")
    cells = cells[:, None] * 3 + cells
    lime = rt.Lime(superpixels=cells, samples="all", baseline=0.25, alpha=0.0)
    experiment = Pertinent(superpixels="grid", count=9, baseline=0.25, threshold=0.4)
    data, options = noise_images().subset(range(6)), {"methods": [lime], "contrasts": ["weighted"]}
    rows = rt.evaluate(experiment, network(0), data, out=tmp_path, **options).to_frame().set_index("position")
    assert len(rows) == 6
    weak = 0
    for index in rows.index:
        image = noise_images()[index][0].double()[None]
        found = rt.explain(network(0), image, method=lime).attribution[0, 0]
        relevance = torch.stack([found[cells == cell].mean() for cell in range(9)])
        assert rows["features"][index] == (relevance > 0).sum()
        weak += int(((relevance > 0) & (relevance < 0.4 * relevance.max())).sum())
        shown = torch.where((relevance > 0)[cells], image, 0.25)
        p = network(0).module(shown)[0].softmax(0).detach()
        assert rows["p_fact"][index] == pytest.approx(float(p[network(0).module(image).argmax()]), rel=1e-5)
    assert weak > 0
