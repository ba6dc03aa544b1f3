"""The verb `audit`, and what it found: confusions, suspects, pieces that decide by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.attribution.method import Method, get_method
from ratherthan.auditing.atlas import draw_atlas, parted
from ratherthan.auditing.decisions import Decisions
from ratherthan.auditing.parts import Piece, pieces
from ratherthan.contrast import Contrast, ContrastFunction, get_contrast
from ratherthan.data import Dataset, FileReader, LabelMap, batches, match_labels
from ratherthan.data import load as load_data
from ratherthan.errors import InputError
from ratherthan.evaluation.localisation import plane_of, read_regions
from ratherthan.evaluation.run import evaluate
from ratherthan.evaluation.tables import Run
from ratherthan.evaluation.workers import Engine
from ratherthan.model import Model
from ratherthan.progress import Progress, reporter
from ratherthan.render.figure import figure_png
from ratherthan.result import picture
from ratherthan.settings import AtLeastOne, check_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_DONORS, _HOSTS = 32, 64  # images of a class that pieces are cut from; of others that they are put onto
_FEW = 8  # images of a class, below which nothing is said about what they share
_LISTS = ("map", "foils", "place", "place_map")  # columns that are read as they are needed
_FINER = 8  # points along a cell's side at which it is asked whether it lies in a region
_BORDER = 8  # an eighth of the rows and columns on each side


def audit(
    model: Model | nn.Module,
    dataset: Any,
    *,
    out: str | Path,
    method: str | Method = "gradcam",
    contrast: str | Contrast | ContrastFunction = "weighted",
    cells: int = 14,
    places: int = 0,
    label_map: LabelMap = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int = 0,
    engine: Engine = "processes",
    address: str | None = None,
    shard_size: int = 256,
    progress: Progress = None,
) -> Audit:
    """Look through a labelled data set: where does the network go wrong, and what is it looking at when it does?

    One forward pass per image, shared by the decision and its map. Results are written shard by shard, as those of
    `evaluate`, and a run that is killed can be resumed.

    Args:
        model: The network, of two or more classes.
        dataset: A `data.Dataset`, a torch data set, or what `data.load` takes; labels are matched by name.
        out: The folder of the run.
        method: What shows where: an attribution method.
        contrast: How P is weighed against Q.
        cells: Rows and columns of the map that is kept of each image.
        places: So many at most, by which all foils of each image are parted for `Audit.atlas`, from the same forward
            pass; 0: none.
        label_map: What a class of the set is called in the model, where its name differs.
        limit: Use so many images only, evenly spread.
        batch_size: Images per forward pass; None: as many as fit.
        seed: Of what is drawn at random.
        resume: Go on with the run in `out`, if there is one.
        workers: As in `evaluate`, with `engine` and `address`.
        engine: Likewise.
        address: Likewise.
        shard_size: Images per shard; what is lost when a run is killed.
        progress: True draws a bar; a callable is called with (images done, images in all).

    Returns:
        What was found.

    Raises:
        InputError: If an argument cannot be used, or `out` holds a run with other settings.

    Example:
        >>> found = audit(model, "mnist", out="runs/audit")
        >>> print(found.confusions())
        >>> found.save("audit.html")
    """
    model = Model.wrap(model)
    data = match_labels(load_data(dataset), model.class_names, label_map)
    data = data.with_transform(data.transform or model.inputs.prepare)
    data = data.spread(check_value("limit", AtLeastOne | None, limit))
    run = evaluate(
        Decisions(cells, places), model, data, out=out, methods=[method], contrasts=[contrast], batch_size=batch_size,
        seed=seed, resume=resume, workers=workers, engine=engine, address=address, shard_size=shard_size,
        progress=progress,
    )  # fmt: skip
    return Audit(run, model, data, get_method(method), get_contrast(contrast))


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What was found in a data set.

    Attributes:
        run: The rows, one per image.
        model: The network.
        data: The images.
        method: What shows where.
        contrast: How P is weighed against Q.
    """

    run: Run
    model: Model
    data: Dataset
    method: Method
    contrast: Contrast
    _pieces: tuple[Piece, ...] = ()

    def __repr__(self) -> str:
        return f"Audit({self.model.name} on {self.data.name}, {self.run.shards.folder})"

    def __str__(self) -> str:
        rows, wrong = self._rows, self._wrong
        told = [
            f"{self.data.name}: {len(rows):,} images, {len(wrong):,} not as labelled ({len(wrong) / len(rows):.1%})"
        ]
        told += [
            f"{each.count:5} said {each.said}, labelled {each.label}" for each in self.confusions()[:10].itertuples()
        ]
        spurious = [piece for piece in self._pieces if piece.spurious]
        told += [f"{piece.said} is decided by a piece: {piece.told}" for piece in spurious[:10]]
        return "\n".join(told + ["no piece of 4 % decides by itself"] * bool(self._pieces and not spurious))

    # ----------------------------------------------------------------------------------------- rows
    @cached_property
    def _rows(self) -> DataFrame:
        """A row per image, classes by their index."""
        import pandas as pd

        shards = self.run.shards
        tables = (shards.read(number)[0] for number in range(len(shards.positions)))
        kept = (table.drop_columns([*set(_LISTS) & set(table.column_names)]) for table in tables if len(table))
        return pd.concat([table.to_pandas() for table in kept], ignore_index=True)

    @property
    def _wrong(self) -> DataFrame:
        return self._rows[self._rows["said"] != self._rows["label"]]

    def _name(self, index: int) -> str:
        return self.data.class_names[index]

    def _index(self, name: str | int) -> int:
        known = self.data.class_names
        if not isinstance(name, int) and name not in known:
            raise InputError(f"no class is called {name!r}; there are {', '.join(known[:10])}")
        return name if isinstance(name, int) else known.index(name)

    def _pair(self, said: str | int, label: str | int) -> DataFrame:
        """The rows said to be one class and labelled another."""
        rows = self._wrong
        return rows[(rows["said"] == self._index(said)) & (rows["label"] == self._index(label))]

    def to_frame(self) -> DataFrame:
        """A row per image.

        Returns:
            sample, label, said, foil (names), wrong, p_said, p_foil, p_label, odds (log-odds of the label over all
            other classes), score (what the contrast gives); path, where the images are files.
        """
        rows = self._rows
        told = rows.assign(
            wrong=rows["said"] != rows["label"], **{k: rows[k].map(self._name) for k in ("label", "said", "foil")}
        )
        columns = ["sample", "label", "said", "foil", "wrong", "p_said", "p_foil", "p_label", "odds", "score"]
        files = self.data.reader.files if isinstance(self.data.reader, FileReader) else ()
        if files and all(isinstance(file, Path) for file in files):  # others lie inside a tar
            paths = [str(Path(files[self.data.positions[i]]).absolute()) for i in told["position"]]
            told, columns = told.assign(path=paths), [*columns, "path"]
        return told[columns]

    # ----------------------------------------------------------------------------------------- confusions
    def confusions(self, regions: Any = None) -> DataFrame:
        """The pairs (said P, labelled Q), the most frequent first.

        Args:
            regions: Where the objects are, as `localisation` takes it: by the name of a sample its boxes or its mask,
                "*" for all that are not named; or a JSON file of boxes.

        Returns:
            said, label, count, share (of the images with that label), odds (mean log-odds of the label), border (mean
            share of the relevance for P within an eighth of the image's edge), one_place (1: all maps are alike, 0:
            they have nothing in common), typical (the sample whose map is most like the mean of all); with regions
            also background (mean share of the relevance for P outside them, of the samples that have one).

        Raises:
            InputError: If the regions cannot be used.
        """
        import pandas as pd

        where = None if regions is None else read_regions(regions)
        labelled, told = self._rows["label"].value_counts(), list[dict[str, Any]]()
        for (said, label), rows in self._wrong.groupby(["said", "label"]):
            maps = _alike(self._maps(rows["position"].tolist()))
            mean = maps.mean(0)
            likeness = (maps * mean).sum((1, 2)) / mean.square().sum().sqrt().clamp_min(1e-12)
            told.append({
                "said": self._name(said), "label": self._name(label), "count": len(rows),
                "share": len(rows) / labelled[label], "odds": rows["odds"].mean(), "border": _border(maps),
                "one_place": mean.square().sum().sqrt().item(), "typical": rows["sample"].iloc[int(likeness.argmax())],
                "background": np.nan if where is None else _background(maps, rows["sample"].tolist(), where),
            })  # fmt: skip
        columns = ["said", "label", "count", "share", "odds", "border", "one_place", "typical"]
        columns += ["background"] * (where is not None)
        return pd.DataFrame(told, columns=columns).sort_values(
            "count", ascending=False, kind="stable", ignore_index=True
        )

    def map(self, said: str | int, label: str | int) -> Tensor:
        """(cells, cells) the mean map of the images said to be one class and labelled another, each of unit length."""
        chosen = self._pair(said, label)
        if chosen.empty:
            raise InputError(f"no image is said to be {said} and labelled {label}")
        return _alike(self._maps(chosen["position"].tolist())).mean(0)

    def clusters(self, said: str | int, label: str | int, most: int = 3) -> DataFrame:
        """The images of a pair by where they are decided.

        Args:
            said: What the network says.
            label: What they are labelled.
            most: Clusters of alike maps (average linkage of their cosines).

        Returns:
            sample, cluster (1 the largest), like (cosine to the cluster's mean).
        """
        chosen = self._pair(said, label)
        maps = _alike(self._maps(chosen["position"].tolist())).flatten(1).double().numpy()
        if not len(maps):
            return chosen[["sample"]].assign(cluster=0, like=0.0)
        group, means = parted(maps, most)
        means = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
        told = {"cluster": group + 1, "like": (maps * means[group]).sum(1)}
        return chosen[["sample"]].assign(**told).reset_index(drop=True)

    # ----------------------------------------------------------------------------------------- suspects
    def suspects(self, count: int | None = None) -> DataFrame:
        """The images whose label the network speaks against, the most suspect first.

        Args:
            count: How many; None: all images, in this order.

        Returns:
            sample, label, said, odds (log-odds of the label over all other classes), p_label, p_said.
        """
        rows = self.to_frame().sort_values("odds", kind="stable", ignore_index=True)
        return rows[["sample", "label", "said", "odds", "p_label", "p_said"]][:count]

    # ----------------------------------------------------------------------------------------- pieces
    def pieces(self, progress: Progress = None) -> tuple[Piece, ...]:
        """Small pieces of images, a few of each class, and how far each decides by itself, the strongest first.

        A piece is cut from images that are said to be of a class, where the relevance lies, and put onto images that
        are rightly said to be of other classes. What closes a quarter of the gap between these and images of the class,
        and is a twenty-fifth of the image, is no part of an object that tells its class: `spurious`. Only what the data
        show can be found: a mark that belongs to one class has to be in it.

        Args:
            progress: True draws a bar; a callable is called with (classes done, classes in all).
        """
        if self._pieces:
            return self._pieces
        rows, found = self._rows, list[Piece]()
        right = rows[rows["said"] == rows["label"]]
        classes = [said for said, count in rows["said"].value_counts().sort_index().items() if count >= _FEW]
        with reporter(progress, "cutting out") as report:
            for done, said in enumerate(classes):
                report(done, len(classes))
                others = _spread(right[right["said"] != said]["position"].tolist(), _HOSTS)
                donors = _spread(rows[rows["said"] == said]["position"].tolist(), _DONORS)
                if len(others) >= _FEW:
                    of, hosts = self._images(donors), self._images(others)
                    found += pieces(self.model, (self._name(said), said), self._maps(donors), of, tuple(donors), hosts)
            report(len(classes), len(classes))
        object.__setattr__(self, "_pieces", tuple(sorted(found, key=lambda piece: piece.rank)))
        return self._pieces

    def repair_set(self, found: Sequence[Piece] | None = None, count: int = 256) -> torch.utils.data.TensorDataset:
        """Images to fine-tune on, that teach the network not to decide by a piece.

        Of each piece: images labelled its class without it (what lies at its place in images of other classes instead),
        and as many images of other classes with it, all with their own labels.

        Args:
            found: The pieces; None: those of `pieces()` that are spurious.
            count: Images of each sort for each piece.

        Returns:
            Images (n, C, H, W) in image space, and labels.

        Raises:
            InputError: If there is no such piece.
        """
        found = [piece for piece in self.pieces() if piece.spurious] if found is None else found
        if not found:
            raise InputError("no piece decides by itself: there is nothing to repair; hand in pieces to repair anyway")
        images, labels = list[Tensor](), list[int]()
        for piece in found:
            own = _spread([i for i, label in enumerate(self.data.labels) if label == piece.index], count)
            other = _spread([i for i, label in enumerate(self.data.labels) if label != piece.index], count)
            marked, plain = self._images(own), self._images(other)
            donors = self._images(piece.positions)
            for i in range(min(len(marked), len(plain))):
                donor = i % len(donors)
                rows, columns = piece.boxes[donor]
                marked[i, :, rows, columns] = plain[i - 1, :, rows, columns]
                with_piece = plain[i].clone()
                with_piece[:, rows, columns] = donors[donor, :, rows, columns]
                images += [marked[i], with_piece]
                labels += [piece.index, self.data.labels[other[i]]]
        return torch.utils.data.TensorDataset(torch.stack(images), torch.tensor(labels))

    # ----------------------------------------------------------------------------------------- all foils
    def atlas(self, said: str | int, count: int = 3, named: int = 3) -> Figure:
        """A picture of why a class, rather than each of all others, in some images that are said to be of it.

        A row per image, and in it a map per place where some of the foils are told from the class, those of most foils
        first, with the likeliest of them.

        Args:
            said: The class.
            count: Images, evenly spread over all.
            named: Foils that are named at each place.

        Raises:
            InputError: If the audit was made without `places`, or no image is said to be of this class.
        """
        if not self.run.shards.settings["experiment"]["places"]:
            raise InputError("this audit kept no places: ask for them with places=4 (--places 4)")
        rows = self._rows[self._rows["said"] == self._index(said)]
        if rows.empty:
            raise InputError(f"no image is said to be {said}; there are {', '.join(self.said[:10])}")
        chosen = _spread(rows["position"].tolist(), check_value("count", AtLeastOne, count))
        pictures = [picture(image, self.model.inputs.show) for image in self._images(chosen)]
        found = self._lists(chosen, _LISTS[1:])
        names = [Path(self.data.ids[position]).name for position in chosen]
        shown = list(zip(names, pictures, found, strict=True))
        return draw_atlas(self._name(self._index(said)), shown, self.data.class_names, named)

    def save_atlas(self, folder: str | Path, progress: Progress = None) -> Path:
        """Write a picture of each class that images are said to be of.

        Args:
            folder: Where to; pictures are named after the classes.
            progress: True draws a bar; a callable is called with (classes done, classes in all).
        """
        from ratherthan.files import file_stems, write_atomically

        with reporter(progress, "drawing") as report:
            for done, (said, stem) in enumerate(zip(self.said, file_stems(self.said), strict=True)):
                write_atomically(Path(folder) / f"{stem}.png", [figure_png(self.atlas(said))])
                report(done + 1, len(self.said))
        return Path(folder)

    @property
    def said(self) -> list[str]:
        """The classes that images are said to be of, the most frequent first."""
        return [self._name(index) for index in self._rows["said"].value_counts().index]

    # ----------------------------------------------------------------------------------------- files
    def to_cleanlab(self) -> DataFrame:
        """The columns that cleanlab's `Datalab.get_issues("label")` has, for tools that read them."""
        rows = self.to_frame()
        told = {"is_label_issue": rows["wrong"], "label_score": rows["p_label"], "given_label": rows["label"]}
        return rows.assign(**told, predicted_label=rows["said"])[[*told, "predicted_label"]]

    def save(self, path: str | Path, regions: Any = None) -> Path:
        """Write it to a file.

        Args:
            path: ".html": a page with the tables and with the cases of the most frequent pairs. ".csv": `to_frame`.
            regions: As in `confusions`, for the page.

        Returns:
            The path.

        Raises:
            InputError: If the file has another ending.
        """
        from ratherthan.auditing.page import write
        from ratherthan.files import write_atomically

        path = Path(check_value("the path of an audit", str | Path, path))
        if path.suffix == ".html":
            return write(self, path, regions)
        if path.suffix == ".csv":
            return write_atomically(path, [self.to_frame().to_csv(index=False).encode()])
        raise InputError(f"cannot save {str(path)!r}: end it in .html or .csv")

    # ----------------------------------------------------------------------------------------- images and maps
    def samples(self, said: str | int, label: str | int, count: int | None = None) -> Dataset:
        """The images of a pair, the most typical first; any verb takes them."""
        order = self.clusters(said, label).sort_values(["cluster", "like"], ascending=[True, False])["sample"][:count]
        places = {name: i for i, name in enumerate(self.data.ids)}
        return self.data.subset([places[name] for name in order])

    def _images(self, positions: Sequence[int]) -> Tensor:
        """(n, C, H, W) in image space."""
        loaded = [self.model.preprocess(images) for _, images, _ in batches(self.data, 16, order=list(positions))]
        return torch.cat(loaded)

    def _maps(self, positions: Sequence[int]) -> Tensor:
        """(n, cells, cells) the maps of some images, in this order."""
        maps = torch.tensor([row["map"] for row in self._lists(positions, ["map"])])
        cells = round(maps.shape[1] ** 0.5)
        return maps.reshape(len(maps), cells, cells)

    def _lists(self, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some images, in this order."""
        shards, wanted = self.run.shards, np.asarray(positions)
        size, found = int(shards.settings["shard_size"]), dict[int, dict[str, Any]]()
        for number in np.unique(wanted // size):
            table = shards.read(int(number))[0].select(["position", *columns])
            table = table.filter(np.isin(table["position"].to_numpy(), wanted))
            found |= {row["position"]: row for row in table.to_pylist()}
        return [found[position] for position in wanted.tolist()]


def _alike(maps: Tensor) -> Tensor:
    """Maps of unit length; of nothing, nothing."""
    return maps / maps.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-12)


def _border(maps: Tensor) -> float:
    gain, edge = maps.clamp_min(0), max(1, round(maps.shape[1] / _BORDER))
    inner = gain[:, edge:-edge, edge:-edge].sum((1, 2))
    return float((1 - inner / gain.sum((1, 2)).clamp_min(1e-12)).mean())


def _background(maps: Tensor, names: Sequence[str], regions: Mapping[str, Any]) -> float:
    """The mean share of the relevance that lies outside the regions; a cell lies outside as far as its area does."""
    cells, shares = maps.shape[-1], list[float]()
    for map_, name in zip(maps.clamp_min(0), names, strict=True):
        if (region := regions.get(name, regions.get("*"))) is not None:
            inside = plane_of(name, region, [cells * _FINER] * 2).float()
            inside = torch.nn.functional.avg_pool2d(inside[None], _FINER)[0]
            shares.append(float((map_ * (1 - inside)).sum() / map_.sum().clamp_min(1e-12)))
    return float(np.mean(shares)) if shares else np.nan


def _spread(positions: Sequence[int], count: int) -> list[int]:
    few = min(count, len(positions))
    return [positions[i * len(positions) // few] for i in range(few)]
