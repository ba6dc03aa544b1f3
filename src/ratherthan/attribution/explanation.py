"""What `explain` returns: the maps, the question they answer, and how they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ratherthan.contrast import Contrast, foil_sets, get_contrast
from ratherthan.errors import InputError
from ratherthan.inputs.text import words_of
from ratherthan.outputs import OUTPUTS
from ratherthan.registry import unique_name
from ratherthan.result import Result, Shape, laid_over
from ratherthan.settings import check_value
from ratherthan.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ratherthan.render.case import Case
    from ratherthan.render.panel import Panel

Preset = Literal["prabhushankar2020"] | None
SHOWN = 20
"""Of many facts or foils, figures show so many, the likeliest; a page as many as fit, files of numbers hold all."""
_MOST_ON_A_PAGE, _BYTES_OF_MAPS = 1024, 2**20  # of one contrast: maps; numbers, a byte each
_AT_ONCE = 64  # maps that are upsampled: a thousand of one image fill 200 MB
_SHOWN_CLASSES, _SHOWN_WORDS, _SHOWN_COLUMNS = 6, 4, 20
_AXES = {1: ["step"], 2: ["row", "column"], 3: ["slice", "row", "column"]}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_BY_QUESTION = ("attribution", "fact", "foil", "sets", "score", "diagnostics")


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(Result):
    """Where in an input the fact is preferred over the foil.

    Attributes:
        attribution: Raw signed relevance, positive where it speaks for the fact: (N, [Q], h, w) at the resolution of
            the layer, or (N, [Q], C, H, W) for methods that explain the image. Not rectified, not normalised. Of
            volumes (d, h, w) and (C, D, H, W), of signals (t) and (C, T), of tokens (T), of columns (F).
        foil: (N, [Q]) the class compared with, -1 where several are foils together; a value for a regressor.
        sets: (N, [Q], classes) bool, the foils of each question; None: `foil` tells them, -1 for all but the fact.
        score: (N, [Q]) the contrast itself, e.g. the log-odds.
        contrast: Name of the contrast.
        layer: The layer explained, or None for the image.
        diagnostics: Figures of the computation, e.g. how far completeness is missed: tensors (N, [Q]) or text.
    """

    kind: ClassVar[str] = "explanation"
    leading: ClassVar[str] = "likeliest"
    asks: ClassVar[str] = "Why P, rather than Q?"
    attribution: Annotated[Tensor, Shape("N Q ...")]
    foil: Annotated[Tensor, Shape("N Q")]
    sets: Annotated[Tensor, Shape("N Q K")] | None = None
    score: Annotated[Tensor, Shape("N Q")]
    contrast: str
    layer: str | None = None
    diagnostics: Annotated[dict[str, Any], Shape("N ...")] = field(default_factory=dict)

    # ----------------------------------------------------------------------------------------- reading it
    def heatmap(self, preset: Preset = None, align_corners: bool = False) -> Tensor:
        """The attribution on the plane of the image: channels summed, linearly upsampled on each axis, nothing else.

        Args:
            preset: None, or "prabhushankar2020": as the code published with contrastive-gradcam draws its maps. They
                are rectified at the resolution of the layer (what speaks against the fact is lost), upsampled, and each
                is stretched to [0, 1]; a zero map stays zero, where that code gives NaN.
            align_corners: Whether the corner cells of a map lie on the corner pixels, as in the code published with
                weighted-contrast; else the cells divide the image evenly.

        Returns:
            (N, H, W), or (N, Q, H, W) where facts or foils form an axis; of volumes (N, [Q], D, H, W), of signals
            (N, [Q], T), of tokens and columns (N, [Q], 1, T).

        Raises:
            InputError: If there is no such preset.
        """
        return self._drawn(self.attribution, 1 if self.axis is None else 2, preset, align_corners)

    def over_foils(self, preset: Preset = None) -> tuple[Tensor, Tensor]:
        """What all foils agree on, and where they differ (contrastive-gradcam, Fig. 3 g and f).

        Ask with `foil="each"` for all classes. A question whose foil is the fact itself does not count.

        Args:
            preset: As in `heatmap`.

        Returns:
            Mean and variance over the foils of the heatmaps, (N, H, W) each; the variance is divided by their number.

        Raises:
            InputError: If the foils do not form an axis, or a sample has none but its fact.
        """
        if self.axis != "foil":
            raise InputError("mean and variance need an axis of foils: ask with foil='each', 'top5' or a list")
        counts = torch.ones_like(self.foil, dtype=torch.bool) if self.output == "value" else self.foil != self.fact
        if not counts.any(1).all():
            raise InputError("a sample has no foil but its fact: ask with foil='each', or for other classes")
        kept = (one.attribution[0, rows] for one, rows in zip(self, counts, strict=True))
        drawn = (self._drawn(each, 1, preset) for each in kept)  # a thousand of one image fill 200 MB
        variances, means = zip(*(torch.var_mean(maps, 0, correction=0) for maps in drawn), strict=True)
        return torch.stack(means), torch.stack(variances)

    @property
    def foil_sets(self) -> Tensor:
        """(N, [Q], classes) bool: the foils of each question."""
        return foil_sets(self.fact, self.foil, self.logits.shape[1]) if self.sets is None else self.sets

    @classmethod
    def joined(cls, parts: Sequence[Explanation]) -> Explanation:
        """Explanations of consecutive samples as one."""
        whole = super().joined(_alike(parts))
        if not whole.tokens:
            return whole
        # behind the end of a shorter text there is no relevance
        return dataclasses.replace(whole, attribution=whole.attribution.nan_to_num(0.0))

    def words(self, sample: int, q: int = 0) -> list[tuple[str, float]]:
        """The words of a text, each with the relevance of its tokens together.

        Args:
            sample: Which text.
            q: Which question about it.

        Raises:
            InputError: If what is explained is no text.
        """
        if not self.tokens:
            raise InputError("these are no texts, and have no words")
        values = self.by_question(self.attribution)[sample, q].tolist()
        found = list[tuple[str, float]]()
        for number, token, value in zip(words_of(self.tokens[sample]), self.tokens[sample], values, strict=False):
            before, total = found.pop() if number < len(found) else ("", 0.0)
            found.append((before + token.strip(" "), total + value))
        return found

    def _foils(self, sample: int, q: int) -> Tensor:
        """The classes compared with, (foils,): one of a vocabulary of 50,000 is found without listing them all."""
        fact, foil = (self.by_question(each)[sample, q] for each in (self.fact, self.foil))
        if self.sets is not None:
            return self.by_question(self.sets)[sample, q].nonzero().flatten()
        return foil.view(1) if foil >= 0 else foil_sets(fact, foil, self.logits.shape[1]).nonzero().flatten()

    @cached_property
    def _known(self) -> Contrast | None:
        """The contrast, if it is a registered one."""
        with suppress(InputError):
            return get_contrast(self.contrast)
        return None

    @cached_property
    def _measured(self) -> dict[tuple[int, int], list[tuple[float, float, tuple[int, ...]]]]:
        """Filled as it is asked for, by sample and first of some questions; see `_divided`."""
        return {}

    def _divided(self, sample: int, q: int) -> tuple[float, float, tuple[int, ...]]:
        """How much of a map speaks for the fact and against it, and where it is largest; with those of neighbours."""
        first = q - q % _AT_ONCE
        if (sample, first) not in self._measured:
            maps = self._drawn(self.by_question(self.attribution)[sample, first : first + _AT_ONCE], 1)
            flat = maps.flatten(1)
            gain, loss = flat.clamp_min(0).sum(1).tolist(), (-flat).clamp_min(0).sum(1).tolist()
            peaks = (tuple(map(int, np.unravel_index(at, maps.shape[1:]))) for at in flat.argmax(1).tolist())
            self._measured[sample, first] = list(zip(gain, loss, peaks, strict=True))
        return self._measured[sample, first][q - first]

    def _odds(self, sample: int, q: int) -> tuple[float, float]:
        """The probabilities of the fact and of the foils."""
        p = self._p[sample]
        fact = p[self.by_question(self.fact)[sample, q]]
        foil = 1 - fact if self._against_none(sample, q) else p[self._foils(sample, q)].sum()
        return fact.item(), foil.item()

    @cached_property
    def _p(self) -> Tensor:
        return self.probabilities()

    def _against_none(self, sample: int, q: int) -> bool:
        """Whether a label is asked about by itself: rather than not it."""
        none = self.logits.shape[1] - 1
        return not OUTPUTS.find(self.output).exclusive and bool(self.by_question(self.foil)[sample, q] == none)

    def question(self, sample: int, q: int = 0) -> str:
        """The question about one sample in words."""
        fact, foil = self.fact_name(sample, q), self.foil_name(sample, q)
        if self.output == "value":
            return f"Why {fact}, rather than {foil}?" if foil else f"Why {fact}?"
        if self._known is not None:
            return self._known.describe(fact, foil)
        return f"{get_contrast('weighted').describe(fact, foil)} ({self.contrast})"

    def fact_name(self, sample: int, q: int = 0) -> str:
        """The fact in words."""
        if self.output == "value":
            return f"{self.logits[sample, 0].item():.3g}"
        return self.class_label(int(self.by_question(self.fact)[sample, q]))

    def foil_name(self, sample: int, q: int = 0) -> str:
        """The foil, or foils, in words; empty where the contrast has none."""
        if self.output == "value":
            return f"{self.by_question(self.foil)[sample, q].item():.3g}" if self.contrast != "none" else ""
        if self.contrast == "none":
            return ""
        if self._against_none(sample, q):
            return f"not {self.fact_name(sample, q)}"
        members = self._foils(sample, q).tolist()
        if len(members) == self.logits.shape[1] - 1 and len(members) > 1:
            return f"any of the {len(members)} others"
        shown = [self.class_label(member) for member in members[:4]]
        return " or ".join(shown) + (f" or {len(members) - 4} more" if len(members) > 4 else "")

    def text(self, sample: int, q: int = 0) -> str:
        """One line about one sample: the question, the figures, and how the relevance is divided."""
        gain, loss, _ = self._divided(sample, q)
        score = self.by_question(self.score)[sample, q].item()
        share = f"{gain / (gain + loss):.0%} of the relevance is for it" if gain + loss else "no relevance anywhere"
        odds = ""
        if self.output != "value":
            fact, foil = (self.by_question(each)[sample, q] for each in (self.fact, self.foil))
            compared = self.contrast != "none" and foil >= 0 and foil != fact
            p_fact, p_foil = map(percent, self._odds(sample, q))
            odds = f" ({p_fact} against {p_foil})" if compared else f" ({p_fact})"
        told = f"{self.question(sample, q)} {self._measure(sample, q)}: {score:+.2f}{odds}; {share}."
        if not self.tokens:
            return told
        ranked = sorted(self.words(sample, q), key=lambda each: -each[1])
        strongest = (
            [each for each in ranked[:_SHOWN_WORDS] if each[1] > 0],
            [each for each in ranked[:-3:-1] if each[1] < 0],
        )
        sides = (", ".join(f"{word} {value:+.2f}" for word, value in side) for side in strongest)
        return told + "".join(f" {name}: {said}." for name, said in zip(("For", "Against"), sides, strict=True) if said)

    def _measure(self, sample: int, q: int) -> str:
        """What the contrast's number is, as the beginning of a sentence."""
        names = {"fact": self.fact_name(sample, q), "foil": self.foil_name(sample, q) or "nothing"}
        said = self._known.measure.format(**names) if self._known and self.output != "value" else ""
        return said[:1].upper() + said[1:] if said else self.contrast

    def made_by(self) -> str:
        """The method, and the layer it explains."""
        return f"{self.method} on {f'layer {self.layer}' if self.layer else f'the {self.seen}'}{self._fed}"

    def __repr__(self) -> str:
        shape = tuple(self.attribution.shape)
        return f"Explanation({self.method} on {self.layer or f'the {self.seen}'}, {self.contrast}, attribution={shape})"

    def to_frame(self) -> DataFrame:
        """One row per sample and question: names, probabilities, the contrast and where the map is strongest."""
        import pandas as pd

        return pd.DataFrame([self._row(i, q) for i in range(len(self)) for q in range(self.questions)])

    def likeliest(self, count: int) -> Explanation:
        """The same with the likeliest few of its facts or foils, likeliest first; values keep their order."""
        if self.axis is None:
            return self
        count = min(count, self.questions)
        order = torch.arange(count, device=self.fact.device).expand(len(self), -1)
        if self.output != "value":
            p = self.probabilities()
            asked = p.gather(1, self.fact)
            if self.axis == "foil":
                single = torch.where(self.foil < 0, 1 - asked, p.gather(1, self.foil.clamp_min(0)))
                asked = single if self.sets is None else torch.einsum("nqc,nc->nq", self.sets.to(p), p)
                asked = asked.masked_fill(self.foil == self.fact, -1)
            order = asked.argsort(dim=1, descending=True, stable=True)[:, :count]
        rows = torch.arange(len(self), device=order.device).unsqueeze(1)
        values = {key: getattr(self, key) for key in _BY_QUESTION}
        return dataclasses.replace(self, **tree_map_only(Tensor, lambda value: value[rows, order], values))

    # ----------------------------------------------------------------------------------------- showing it
    def panels(self) -> list[Panel]:
        """What the rendering draws: one case per sample, or per sample and fact."""
        return to_panels([self])

    def plot(self) -> Figure:
        """A figure: for each sample the image, a map per question, and the probabilities."""
        from ratherthan.render.figure import figure

        return figure(self.panels())

    def cases(self) -> list[Case]:
        """What a page shows: one case per sample, or per sample and fact."""
        return to_cases([self])

    @classmethod
    def beside(cls, results: Sequence[Explanation]) -> list[Case]:
        """What a page shows of several, of the same samples; see `to_cases`."""
        return to_cases(results)

    def _fitting(self) -> int:
        """How many of its questions fit on a page that is to be sent by mail."""
        plane = self.attribution.flatten(1 if self.axis is None else 2).shape[-1]
        return min(_MOST_ON_A_PAGE, max(1, _BYTES_OF_MAPS // plane))

    def plain_map(self, sample: int, q: int) -> np.ndarray[Any, Any]:
        """A map as it was computed, (h, w), channels summed, without what lies behind the end of a text."""
        map_ = _summed(self.by_question(self.attribution)[sample, q], self.images, 0)
        map_ = map_[: len(self.tokens[sample])] if self.tokens else map_
        values: np.ndarray[Any, Any] = map_.detach().float().cpu().numpy()
        return values

    def plain_maps(self) -> Tensor:
        """(N, Q, h, w) maps as they were computed, channels summed."""
        return _summed(self.by_question(self.attribution), self.images, 2)

    def idle(self, sample: int, q: int) -> bool:
        """Whether a class is compared with itself, as one of an axis."""
        fact, foil = (self.by_question(each)[sample, q] for each in (self.fact, self.foil))
        return self.axis == "foil" and self.output != "value" and self.contrast != "none" and bool(fact == foil)

    # ----------------------------------------------------------------------------------------- inside
    def _drawn(self, maps: Tensor, lead: int, preset: Preset = None, align_corners: bool = False) -> Tensor:
        """Maps on the plane of the image; the first `lead` dimensions say whose they are."""
        check_value("preset", Preset, preset)
        maps = _summed(maps, self.images, lead)
        maps = maps.unsqueeze(-2) if self.images.ndim == 2 else maps  # tokens or columns, side by side
        if preset is None:
            return on_plane(maps, self.images, align_corners)
        maps = on_plane(maps.clamp_min(0), self.images, align_corners)
        plane = tuple(range(lead, maps.ndim))
        low, high = maps.amin(plane, keepdim=True), maps.amax(plane, keepdim=True)
        return torch.where(high > low, (maps - low) / (high - low), 0)

    def _row(self, sample: int, q: int) -> dict[str, Any]:
        gain, loss, peak = self._divided(sample, q)
        row = {
            "sample": self.names[sample],
            "fact": self.fact_name(sample, q),
            "foil": self.foil_name(sample, q),
            "method": self.method,
            "contrast": self.contrast,
            "layer": self.layer,
            "score": self.by_question(self.score)[sample, q].item(),
            "relevance_for": gain,
            "relevance_against": loss,
        } | {f"peak_{axis}": at for axis, at in zip(_AXES[len(peak)], peak, strict=True)}
        if self.output != "value":
            row |= dict(zip(("p_fact", "p_foil"), self._odds(sample, q), strict=True))
        return row


def beside(parts: Sequence[Explanation]) -> Explanation:
    """Explanations of the same samples, each with some of the questions of an axis, as one."""
    return parts[0] if len(parts) == 1 else Explanation._merged(_alike(parts), _BY_QUESTION, 1)


def _alike(parts: Sequence[Explanation]) -> Sequence[Explanation]:
    """The same; where one has sets of foils, all have."""
    if all(each.sets is None for each in parts):
        return parts
    return [dataclasses.replace(each, sets=each.foil_sets) for each in parts]


def to_panels(explanations: Sequence[Explanation]) -> list[Panel]:
    """Put explanations of the same images beside each other, for a figure.

    Args:
        explanations: Of the same samples in the same order, by different contrasts or methods.

    Returns:
        One panel per sample (and fact, where facts form an axis), with all their maps.

    Raises:
        InputError: If they are not about the same samples.
    """
    from ratherthan.render.panel import Heatmap, Panel

    explanations = _of_the_same([each.likeliest(SHOWN) for each in explanations])
    first, heatmaps = explanations[0], [each.heatmap() for each in explanations]
    panels = []
    for sample, group in _groups(first):
        image, owner = first.drawn(sample, _columns(first, sample, [each[sample] for each in heatmaps]))
        maps = []
        for label, foil, number, q in _asked(explanations, sample, group):
            each = explanations[number]
            values = each.by_question(heatmaps[number])[sample, q].detach().float().cpu().numpy()
            maps.append(Heatmap(foil, label, laid_over(values, owner), each.text(sample, q)))
        bars, fact = _bars(first, sample, group), first.fact_name(sample, group)
        panels.append(Panel(first.title(sample), image, fact, bars, tuple(maps), paper=first.images.ndim < 4))
    return panels


def to_cases(explanations: Sequence[Explanation]) -> list[Case]:
    """The same for a page: as many maps as fit on it, at the resolution at which they were computed.

    Raises:
        InputError: If they are not about the same samples.
    """
    from ratherthan.render import case
    from ratherthan.render.panel import Panel

    fitting = _of_the_same([each.likeliest(each._fitting()) for each in explanations])
    first, cases = fitting[0], list[case.Case]()
    told = f"The {first.questions} likeliest of {explanations[0].questions}; files of numbers hold all."
    left = any(few.questions < each.questions for each, few in zip(explanations, fitting, strict=True))
    for sample, group in _groups(first):
        maps = list[case.Map]()
        for label, foil, number, q in _asked(fitting, sample, group):
            each, values = fitting[number], fitting[number].plain_map(sample, q)
            asked = each.question(sample, q)
            maps.append(case.Map(foil, label, values, asked, each.text(sample, q).removeprefix(asked).strip()))
        maps.sort(key=lambda each: "weighted" not in each.contrast)  # a page opens with these
        bars, fact = _bars(first, sample, group, len(maps)), first.fact_name(sample, group)
        why = case.why(maps, Panel.sides, told if left else "") if maps else None
        cases.append(case.Case(fact=fact, bars=bars, why=why, **first.about(sample)))
    return cases


def _of_the_same(explanations: Sequence[Explanation]) -> Sequence[Explanation]:
    if not explanations:
        raise InputError("no explanations were given")
    first = explanations[0]
    for other in explanations[1:]:
        if other.names != first.names or other.images.shape != first.images.shape:
            raise InputError("only explanations of the same images can be put beside each other")
    return explanations


def _groups(first: Explanation) -> Iterator[tuple[int, int]]:
    """Of what is drawn by itself: the sample, and the number of its fact where facts form an axis."""
    for sample in range(len(first)):
        for group in range(first.questions if first.axis == "fact" else 1):
            yield sample, group


def _asked(explanations: Sequence[Explanation], sample: int, group: int) -> Iterator[tuple[str, str, int, int]]:
    """The maps of a group: contrast (and method, where there are several), foil, and where each lies."""
    methods = {each.method for each in explanations}
    views: dict[str, dict[str, tuple[int, int]]] = {}
    for number, each in enumerate(explanations):
        seen = views.setdefault(each.contrast if len(methods) == 1 else f"{each.method} {each.contrast}", {})
        for q in [group] if each.axis == "fact" else range(each.questions):
            if each.idle(sample, q):
                continue
            foil = each.foil_name(sample, q)
            if each.contrast != "none":  # a plain map is the same whatever the foil, and shown once
                foil = unique_name(foil, seen.__contains__, "{} ({})")  # ImageNet has two cranes
            seen[foil] = number, q
    return ((label, foil, *at) for label, seen in views.items() for foil, at in seen.items())


def _columns(explanation: Explanation, sample: int, heatmaps: Sequence[Tensor]) -> list[int] | None:
    """Of a wide table the columns that matter most; None: all, as of everything else."""
    if not explanation.tokens or not explanation.images.is_floating_point():
        return None
    count = len(explanation.tokens[sample])
    weights = torch.cat([each.abs().reshape(-1, count) for each in heatmaps]).amax(0)
    return sorted(weights.topk(min(_SHOWN_COLUMNS, count)).indices.tolist())


def _bars(explanation: Explanation, sample: int, q: int, count: int = 0) -> tuple[tuple[str, float], ...]:
    """Names and probabilities of the likeliest classes, the fact and the foils, of which `count` or a few."""
    if explanation.output == "value":
        return ()
    p = explanation.probabilities()[sample]
    p = p if OUTPUTS.find(explanation.output).exclusive else p[:-1]
    top = p.topk(min(_SHOWN_CLASSES, len(p))).indices.tolist()
    fact = int(explanation.by_question(explanation.fact)[sample, q])
    foils = explanation.by_question(explanation.foil)[sample].tolist()
    asked = [foil for foil in foils if 0 <= foil < len(p)][: max(count, _SHOWN_CLASSES)]
    return tuple((explanation.class_label(i), p[i].item()) for i in dict.fromkeys([*top, fact, *asked]))


def _summed(maps: Tensor, images: Tensor, lead: int) -> Tensor:
    """Maps without their channels, if they have any."""
    return maps.sum(lead) if maps.ndim - lead > max(1, images.ndim - 2) else maps


def on_plane(maps: Tensor, images: Tensor, align_corners: bool = False) -> Tensor:
    """Maps (..., h, w) linearly upsampled to the plane of images, (..., H, W), whatever the number of its axes."""
    size = images.shape[2:] if images.ndim > 2 else torch.Size((1, images.shape[-1]))
    lead, plane = maps.shape[: -len(size)], maps.shape[-len(size) :]
    if plane == size:
        return maps
    flat = maps.reshape(-1, 1, *plane)
    upsampled = torch.nn.functional.interpolate(flat, size, mode=_MODES[len(size)], align_corners=align_corners)
    return upsampled.reshape(*lead, *size)
