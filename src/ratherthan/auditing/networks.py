"""Two networks on the same images: where the new one says otherwise, whether that is worse, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.attribution.explain import explain
from ratherthan.attribution.explanation import Explanation
from ratherthan.attribution.method import Method
from ratherthan.contrast import Contrast, ContrastFunction
from ratherthan.data import Dataset, LabelMap, match_labels
from ratherthan.data import load as load_data
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.progress import Progress, reporter
from ratherthan.render import case
from ratherthan.render.page import Part, write_page
from ratherthan.render.panel import Panel
from ratherthan.settings import AtLeastOne, Share, check_value
from ratherthan.verbs import Samples

if TYPE_CHECKING:
    from pandas import DataFrame

_SHOWN = 40  # cases on a page


def compare_models(
    baseline: Model | nn.Module,
    model: Model | nn.Module,
    dataset: Any,
    *,
    method: str | Method = "gradcam",
    contrast: str | Contrast | ContrastFunction = "weighted",
    label_map: LabelMap = None,
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress = None,
) -> Drift:
    """Why does the new network say Q where the old one said P?

    Both are asked "why P, rather than Q?" with P what the baseline says and Q what the model says; where they agree, Q
    is the baseline's runner-up.

    Args:
        baseline: The network that is trusted.
        model: The one that may take its place. It may see images prepared in another way; its classes have the same
            names in the same order.
        dataset: A `data.Dataset`, a torch data set, or what `data.load` takes; labels are matched by name.
        method: What shows where.
        contrast: How P is weighed against Q.
        label_map: What a class of the set is called in the models, where its name differs.
        limit: Use so many images only, evenly spread.
        batch_size: Images per forward pass.
        progress: True draws a bar; a callable is called with (images done, images in all).

    Returns:
        Decisions, maps and labels of both.

    Raises:
        InputError: If the networks have other classes, or an argument cannot be used.
    """
    both = Model.wrap(baseline), Model.wrap(model)
    if both[0].class_names != both[1].class_names:
        raise InputError("two networks are compared that have the same classes; give both the same class names")
    data = match_labels(load_data(dataset), both[0].class_names, label_map)
    data = data.spread(check_value("limit", AtLeastOne | None, limit))
    with reporter(progress, "comparing") as report:
        said = [_said(each, data, batch_size) for each in both]
        fact, second = said[0].topk(2, 1).indices.unbind(1)
        other = said[1].argmax(1)
        foil, asked = torch.where(other == fact, second, other), list[Explanation]()
        for number, each in enumerate(both):
            report(number * len(data), 2 * len(data))
            why = explain(each, data, fact, foil, method, contrast, batch_size=batch_size)
            asked.append(replace(why, model=each.name))
        report(2 * len(data), 2 * len(data))
    return Drift(*asked)


def _said(model: Model, data: Dataset, batch_size: int) -> Tensor:
    """(N, classes) scores."""
    batches = Samples.of(model, data).batches(batch_size, lambda done, total: None)
    with preserve_state(model.module), torch.no_grad():
        return torch.cat([model.logits(batch.images).cpu() for batch in batches])


@dataclass(frozen=True, eq=False, repr=False)
class Drift:
    """Two networks on the same labelled images.

    Attributes:
        baseline: Why P, rather than Q, to the network that is trusted.
        model: The same question to the other.
    """

    baseline: Explanation
    model: Explanation

    @cached_property
    def _labels(self) -> Tensor:
        labels = self.baseline.labels
        return torch.full((len(self.baseline),), -1) if labels is None else labels

    def _right(self, why: Explanation) -> Tensor:
        return why.logits.argmax(1).cpu() == self._labels

    def _gained(self) -> Any:
        """(n,) by how much the probability of the label has changed, of images whose label is known."""
        known = self._labels >= 0
        if not known.any():
            raise InputError("no image has a label that the networks know: whether one is worse cannot be said")
        p = [each.logits.cpu()[known].double().softmax(1) for each in (self.baseline, self.model)]
        return (p[1] - p[0]).gather(1, self._labels[known, None])[:, 0].numpy()

    def likeness(self) -> Tensor:
        """(N,) the cosine of the two maps on the plane of the image: 1 the same evidence, 0 none in common."""
        one, other = (why.heatmap().cpu() for why in (self.baseline, self.model))
        if one.shape != other.shape:  # the networks see images of two sizes
            height, width = (min(lengths) for lengths in zip(one.shape[1:], other.shape[1:], strict=True))
            one, other = (torch.nn.functional.adaptive_avg_pool2d(each, (height, width)) for each in (one, other))
        return torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1))

    def to_frame(self) -> DataFrame:
        """A row per image: sample, label, said by both, odds (log-odds of P over Q in both), likeness of the maps."""
        import pandas as pd

        both, rows = (self.baseline, self.model), torch.arange(len(self.baseline))
        fact, foil = self.baseline.fact.cpu(), self.baseline.foil
        assert foil is not None
        odds = [each.logits.cpu()[rows, fact] - each.logits.cpu()[rows, foil.cpu()] for each in both]
        said = [[each.class_label(k) for k in each.logits.argmax(1).tolist()] for each in both]
        names = [self.baseline.class_label(k) if k >= 0 else "" for k in self._labels.tolist()]
        return pd.DataFrame({
            "sample": self.baseline.names, "label": names, "baseline": said[0], "model": said[1],
            "odds_baseline": odds[0].tolist(), "odds_model": odds[1].tolist(), "likeness": self.likeness().tolist(),
        })  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """How much has changed.

        Returns:
            images; changed (their number), changed_low and changed_high (the 95 % interval of their share, Wilson);
            broken (right before, wrong now), mended (the reverse); gained (the mean change of the label's probability);
            p (of a change as low or lower, were its sign a matter of chance on each image: 9,999 random signs);
            likeness (mean of the maps), likeness_low and likeness_high (95 % bootstrap interval).
        """
        from scipy.stats import binomtest, bootstrap, permutation_test

        said, likeness = [each.logits.argmax(1).cpu() for each in (self.baseline, self.model)], self.likeness().numpy()
        changed, before, now = int((said[0] != said[1]).sum()), self._right(self.baseline), self._right(self.model)
        broken, mended = int((before & ~now).sum()), int((~before & now).sum())
        share = binomtest(changed, len(likeness)).proportion_ci(method="wilson")
        signs = {"permutation_type": "samples", "alternative": "less", "rng": np.random.default_rng(0)}
        gained = self._gained()
        p = permutation_test((gained,), np.mean, vectorized=True, n_resamples=9999, **signs).pvalue
        low = high = float(likeness.mean())
        if likeness.std() > 0:
            drawn = bootstrap((likeness,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0))
            low, high = drawn.confidence_interval
        return {
            "images": len(likeness), "changed": changed, "changed_low": float(share.low),
            "changed_high": float(share.high), "broken": broken, "mended": mended,
            "gained": float(gained.mean()), "p": float(p),
            "likeness": float(likeness.mean()), "likeness_low": float(low), "likeness_high": float(high),
        }  # fmt: skip

    def worse(self, alpha: float = 0.01) -> bool:
        """Whether labels have lost probability, beyond what chance does at this level."""
        return bool(self.summary()["p"] < check_value("alpha", Share, alpha))

    def __repr__(self) -> str:
        return f"Drift({self.baseline.model} to {self.model.model}, {len(self.baseline)} images)"

    def __str__(self) -> str:
        told = self.summary()
        interval = f"{told['changed_low']:.1%} to {told['changed_high']:.1%}"
        likeness = f"{told['likeness']:.2f} ({told['likeness_low']:.2f} to {told['likeness_high']:.2f})"
        return (
            f"{told['changed']} of {told['images']} decisions are others ({interval}): {told['broken']} were right, "
            f"{told['mended']} are right now; their labels' probability changes by {told['gained']:+.3f} "
            f"(p = {told['p']:.2g}); maps are alike by {likeness}"
        )

    def save(self, path: str | Path) -> Path:
        """Write a page: the counts, and the images on which the decision has changed, those that were right first.

        Args:
            path: Ends in ".html".
        """
        path = Path(check_value("the path of a comparison", str | Path, path))
        if path.suffix != ".html":
            raise InputError(f"cannot save {str(path)!r}: end it in .html")
        frame = self.to_frame()
        table = frame.groupby(["baseline", "model", "label"]).size().rename("images").reset_index()
        table = table[table["baseline"] != table["model"]].sort_values("images", ascending=False)
        about = [("baseline", self.baseline.model), ("model", self.model.model), ("method", self.baseline.made_by())]
        about += list(self.baseline.versions.items())
        parts = [Part("Where they differ", str(self), table[:_SHOWN].to_html(index=False, border=0))]
        changed = (frame["baseline"] != frame["model"]).to_numpy().nonzero()[0].tolist()
        ranked = sorted(changed, key=lambda i: bool(self._right(self.baseline)[i]), reverse=True)[:_SHOWN]
        title = f"Why does {self.model.model} say otherwise than {self.baseline.model}?"
        return write_page([self._case(i) for i in ranked], path, title, "", about, parts)

    def _case(self, i: int) -> case.Case:
        """Both maps as foils of one contrast, so that they share a scale where they have one shape."""
        both = {"baseline": self.baseline, "model": self.model}
        values = {which: why.plain_map(i, 0) for which, why in both.items()}
        alike, maps = len({each.shape for each in values.values()}) == 1, list[case.Map]()
        for which, why in both.items():
            asked, contrast = why.question(i), why.contrast if alike else f"{why.contrast}, {which}"
            text = f"{which}: {why.text(i).removeprefix(asked).strip()}"
            maps.append(case.Map(f"{why.foil_name(i)}, {which}", contrast, values[which], asked, text))
        return case.Case(fact=self.baseline.fact_name(i), why=case.why(maps, Panel.sides), **self.baseline.about(i))
