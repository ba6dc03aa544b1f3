"""Labels of one's own data are a model's classes by name; data sets on the command line and in Python."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import struct
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ratherthan as rt
from ratherthan import InputError, data
from test_cli import call, complaints

NAMES = ["tench", "goldfish", "T-shirt/top", "tiger_cat", "tabby, tabby cat", "crane", "crane"]


class Brightness(nn.Module):
    """Class k of K for grey images of brightness k / (K - 1); what is brighter than all is the last."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(0, 1, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -100 * (x.mean((1, 2, 3))[:, None] - self.levels).square()


def of_brightness(path: Path, level: float) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 6), round(255 * level)).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no mean and std")
        yield


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Class folders whose alphabet is not the model's order: zebra is 0, orange 1, tabby 2; one tabby looks orange."""
    for number, name in enumerate(["zebra", "Orange", "tabby"]):
        for i in range(2):
            of_brightness(tmp_path / "animals" / name / f"{i}.png", number / 2 if (name, i) != ("tabby", 1) else 0.5)
    return tmp_path / "animals"


@pytest.fixture
def model() -> rt.Model:
    return rt.Model(Brightness(3), ["zebra", "orange", "tabby, tabby cat"], channels=1, preprocessing="none")


# --------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("word", "index"),
    [
        ("tench", 0), ("TENCH", 0), ("gold-fish", None), ("t shirt/top", 2), ("T_shirt/top", 2), ("Tiger Cat", 3),
        ("tiger-cat", 3), ("tabby", 4), ("tabby cat", 4), ("Tabby, tabby cat", 4), ("cat", None), ("crane", None),
        ("crane (6)", 6),
    ],
)  # fmt: skip
def test_a_class_is_found_by_its_name(word: str, index: int | None, tmp_path: Path) -> None:
    of_brightness(tmp_path / "set" / word.replace("/", "∕") / "a.png", 0.5)
    images = data.load(tmp_path / "set")
    names = [name.replace("/", "∕") for name in rt.Model(nn.Flatten(), NAMES).class_names or ()]
    if index is None:
        with pytest.raises(InputError, match=r"set: no class of the model is called .*--label-map FILE"):
            data.match_labels(images, names)
        assert data.match_labels(images, names, strict=False).labels == (-1,)
    else:
        assert data.match_labels(images, names).labels == (index,)


def test_what_does_not_match_is_named_with_close_ones(animals: Path) -> None:
    (animals / "zebra").rename(animals / "zebras")
    with pytest.raises(InputError, match=r"called 'zebras' \(close: 'zebra'\); say what"):
        data.match_labels(data.load(animals), ["zebra", "orange", "tabby"])
    with pytest.raises(InputError, match=r"no class names to compare with.*--classes FILE"):
        data.match_labels(data.load(animals), None)


@pytest.mark.parametrize("form", ["dict", "json", "csv"])
def test_a_map_says_what_classes_are_called(animals: Path, form: str, tmp_path: Path) -> None:
    (animals / "zebra").rename(animals / "striped")
    told: Any = {"striped": "Zebra", "ORANGE": 1}
    if form == "json":
        (tmp_path / "map.json").write_text("\ufeff" + json.dumps(told), encoding="utf-8")
        told = tmp_path / "map.json"
    elif form == "csv":
        (tmp_path / "map.csv").write_text("striped, zebra\norange,orange\n")
        told = tmp_path / "map.csv"
    found = data.match_labels(data.load(animals), ["zebra", "orange", "tabby"], told)
    assert found.labels == (1, 1, 0, 0, 2, 2)
    assert found.class_names == ("zebra", "orange", "tabby")
    nameless = {"striped": 2, "Orange": 0, "tabby": 1}
    assert data.match_labels(data.load(animals), None, nameless).labels == (0, 0, 2, 2, 1, 1)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"zebr": "zebra"}, "unknown class of animals 'zebr'; did you mean 'zebra'"),
        ({"zebra": "zebr"}, "unknown class of the model 'zebr'; did you mean 'zebra'"),
        ({"zebra": 7}, "a label is none of its 3 classes"),
        ({"zebra": -1}, "unknown class of the model '-1'"),
        ("gone.json", "cannot read 'gone.json'"),
        ("[1]", "should hold an object"),
        ('{"a"', "cannot read"),
        ("[" * 100_000, "cannot read"),
    ],
)
def test_maps_that_do_not_fit(animals: Path, told: Any, message: str, tmp_path: Path) -> None:
    if isinstance(told, str) and not told.startswith("gone"):
        (tmp_path / "map.json").write_text(told)
        told = tmp_path / "map.json"
    with pytest.raises(InputError, match=message):
        data.match_labels(data.load(animals), ["zebra", "orange", "tabby"], told)


def test_sets_with_numbers_of_their_own_keep_them() -> None:
    images = TensorDataset(torch.rand(3, 1, 2, 2), torch.tensor([2, 0, 1]))
    assert data.match_labels(data.load(images), ["a", "b", "c"]).labels == (2, 0, 1)
    assert data.match_labels(data.load(images), None).labels == (2, 0, 1)

    class Named(TensorDataset):
        classes = ("c", "a", "b")

    named = Named(*images.tensors)
    assert data.match_labels(data.load(named), ["a", "b", "c"]).labels == (1, 2, 0)
    with pytest.raises(InputError, match="no class names to compare with"):
        data.match_labels(data.load(named), None)


# --------------------------------------------------------------------------------------------- experiments
@pytest.mark.parametrize("kind", ["folder", "tar", "csv"])
def test_experiments_read_the_models_classes(animals: Path, model: rt.Model, kind: str, tmp_path: Path) -> None:
    given = animals
    if kind == "tar":
        given = tmp_path / "animals.tar"
        with tarfile.open(given, "w") as tar:
            for path in sorted(animals.glob("*/*")):
                tar.add(path, path.relative_to(animals).as_posix())
    elif kind == "csv":
        given = tmp_path / "animals.csv"
        rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in sorted(animals.glob("*/*"))]
        given.write_text("\ufeffpath,label\n" + "".join(rows), encoding="utf-8")
    for experiment in (rt.SignPerturbation(iterations=(1,)), rt.Localisation(regions={"*": [0, 0, 1, 1]})):
        run = rt.evaluate(
            experiment, model, given, out=tmp_path / experiment.name, methods=["gradient"], contrasts=["none"]
        )
        frame = run.to_frame()
        words = frame["sample"].str.extract(r"(zebra|Orange|tabby)")[0]
        assert frame["label"].tolist() == words.map({"zebra": 0, "Orange": 1, "tabby": 2}).tolist()
        with pytest.raises(InputError, match=r"no class of the model is called 'Orange', 'tabby'.* 'zebra'"):
            rt.evaluate(experiment, model.replace(class_names=["a", "b", "c"]), given, out=tmp_path / "no")


def test_experiments_that_read_no_labels_take_any(animals: Path, model: rt.Model, tmp_path: Path) -> None:
    strange = model.replace(class_names=["zebra", "b", "c"])
    run = rt.evaluate("deletion", strange, animals, out=tmp_path / "run", methods=["gradient"], contrasts=["none"])
    assert sorted(run.to_frame()["label"].tolist()) == [-1, -1, -1, -1, 0, 0]


def test_labels_beyond_the_models_classes_are_refused(model: rt.Model, tmp_path: Path) -> None:
    nameless = rt.Model(Brightness(3), channels=1)
    images = TensorDataset(torch.rand(2, 1, 6, 6), torch.tensor([0, 5]))
    with pytest.raises(InputError, match="has 6 classes, the model 3"):
        rt.evaluate("sign-perturbation", nameless, images, out=tmp_path)


# --------------------------------------------------------------------------------------------- what a name means
def test_a_known_name_hides_no_folder(animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    animals.rename(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"say data:mnist or \./mnist"):
        data.load("mnist")
    for own in ("./mnist", Path("mnist"), str(tmp_path / "mnist")):
        assert data.load(own).class_names == ("Orange", "tabby", "zebra")
    with pytest.raises(InputError, match="no folder"):
        data.load("data:mnist", tmp_path / "animals")
    result = call("evaluate", "mask", "-m", "zoo:mnist", "--data", "mnist")
    assert (result.exit_code, len(complaints(result))) == (2, 1)


# --------------------------------------------------------------------------------------------- in Python
def test_data_sets_and_loaders_are_asked_about(animals: Path, model: rt.Model) -> None:
    expected = model.preprocess(sorted(animals.glob("*/*")))
    why = rt.explain(model, data.load(animals), foil="runner-up", method="ixg")
    assert why.names == ("Orange/0.png", "Orange/1.png", "tabby/0.png", "tabby/1.png", "zebra/0.png", "zebra/1.png")
    assert torch.equal(why.images, expected)
    plain = TensorDataset(expected, torch.arange(6))
    assert rt.explain(model, plain, method="ixg").names == tuple(f"{i:06d}" for i in range(6))
    for loader in (DataLoader(plain, 4), DataLoader(TensorDataset(expected), 4)):
        found = rt.explain(model, loader, method="ixg", names=list("abcdef"))
        assert torch.equal(found.images, expected)
        assert found.names == tuple("abcdef")
    how = rt.counterfactual(model, data.load(animals).subset([0]), method=rt.CEM(binary_search_steps=1, iterations=2))
    enough = rt.pertinent_positive(model, expected[:2], names=["x", "y"])
    assert (how.names, enough.names) == (("Orange/0.png",), ("x", "y"))
    with pytest.raises(InputError, match="names is a list of 6"):
        rt.explain(model, expected, names=["a"], method="ixg")


# --------------------------------------------------------------------------------------------- on the command line
FACTORY = "from test_labels import Brightness\ndef make(): return Brightness(3)\n"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "names.txt").write_text("zebra\norange\ntabby\n")
    return ["-m", f"{tmp_path}/net.py:make", "--classes", tmp_path / "names.txt", "--size", 6, "--json"]


def test_explain_takes_a_data_set_and_only_what_is_wrong(animals: Path, command: list[object]) -> None:
    asked = ["explain", *command, "--preprocessing", "none", "--method", "ixg", "--data", animals]

    def samples(*more: object) -> list[str]:
        result = call(*asked, *more)
        assert result.exit_code == 0, result.output
        return [row["sample"] for row in json.loads(result.stdout)["explanations"]]

    assert samples("--only", "wrong") == ["tabby/1.png"]
    assert samples("--only", "right", "--limit", 2) == ["Orange/0.png", "tabby/0.png"]
    assert len(samples()) == 6
    assert samples("--limit", 3) == ["Orange/0.png", "tabby/0.png", "zebra/0.png"]
    (animals / "zebra" / "bad.png").write_bytes(b"")
    result = call(*asked, "--only", "wrong")
    assert (result.exit_code, complaints(result)[0]) == (2, "zebra/bad.png: the file is empty (zero bytes)")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give images, or a set of them by --data"),
        (["x.png", "--data", "{animals}"], "give images, or a set of them by --data"),
        (["x.png", "--only", "wrong"], "belong to --data"),
        (["--data", "{animals}", "--only", "odd"], "odd"),
        (["--data", "{animals}", "--split", "test"], "has no splits"),
        (["--data", "{animals}", "--only", "wrong", "--label-map", "gone.csv"], "cannot read 'gone.csv'"),
        (["--data", "{animals}/zebra"], "CLASS/IMAGE"),
    ],
)
@pytest.mark.parametrize("verb", ["explain", "counterfactual", "pertinent-positive"])
def test_what_cannot_be_asked_of_data(
    verb: str, more: list[str], message: str, animals: Path, command: list[object]
) -> None:
    result = call(verb, *command, *(each.format(animals=animals) for each in more))
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert message in line


# --------------------------------------------------------------------------------------------- damaged files
def tar_with(header: dict[str, str], size: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a/b.png")
        member.pax_headers = header
        member.size = 600
        tar.addfile(member, io.BytesIO(bytes(600)))
    raw = bytearray(buffer.getvalue())
    if size is not None:  # in the base-256 form, and the checksum again
        raw[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
        raw[148:156] = b"        "
        raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


@pytest.mark.parametrize(
    "content",
    [
        tar_with({}, 2**50), tar_with({}, -512), tar_with({"size": "9" * 20}), tar_with({"size": "x"}),
        tar_with({"GNU.sparse.size": "abc"}), tar_with({"GNU.sparse.map": "1,2,3,4,", "GNU.sparse.size": "9"}),
        tar_with({"size": "601"})[:1500], b"", b"\0" * 5000, b"no tar",
    ],
)  # fmt: skip
def test_damaged_tars_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load(tmp_path / "x.tar")[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "ä,b\n".encode("latin-1"), "a.png,b\n".encode("utf-16"), os.urandom(500) + b"\xff", b"x" * 200_000 + b",b\n",
        b"", b"a.png\n", b'"a\n',
    ],
)  # fmt: skip
def test_damaged_tables_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load(tmp_path / "x.csv")
    assert "\n" not in str(error.value)


def test_a_path_with_a_zero_byte_is_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"path,label\na\0b.png,c\n")
    listed = data.batches(data.load(tmp_path / "x.csv"), 1)
    assert list(listed) == []
    assert "cannot be read" in listed.skipped[0].reason
    data.load(tmp_path / "x.csv").fingerprint()


@pytest.mark.parametrize("name", ["x.tar", "x.csv", "names.json", "fifo.png"])
def test_nothing_waits_for_a_fifo(name: str, animals: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    model = rt.Model(Brightness(3), channels=1)
    opened = {"names.json": rt.read_class_names, "fifo.png": lambda path: rt.explain(model, path)}.get(name, data.load)
    with pytest.raises(InputError, match="not a regular file"):
        opened(tmp_path / name)
    os.mkfifo(animals / "zebra" / "fifo.png")
    listed = data.batches(data.load(animals), 8)
    assert sum(len(labels) for _, _, labels in listed) == 6
    assert [each.reason.rpartition(": ")[2] for each in listed.skipped] == ["not a regular file"]


def idx(count: int, content: bytes, *sides: int) -> bytes:
    return gzip.compress(struct.pack(f">{2 + len(sides)}I", 0x801 + len(sides), count, *sides) + content, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"", gzip.compress(b""), gzip.compress(b"\0\0\x08\x03"), idx(2, bytes(784), 28, 28), idx(1, bytes(785), 28, 28),
        idx(1, bytes(700), 28, 28), idx(1, bytes(784), 27, 28), idx(2**32 - 1, bytes(784), 28, 28),
        idx(1, bytes(784), 28, 28)[:-6],
    ],
    ids=itertools.count(),  # what gzip writes holds the time
)  # fmt: skip
def test_damaged_idx_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match="is damaged") as error:
        data.load("data:mnist", tmp_path)
    assert "\n" not in str(error.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    import resource

    (tmp_path / "mnist").mkdir()
    with gzip.open(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", "wb", 1) as file:
        file.write(struct.pack(">IIII", 0x803, 1, 28, 28))
        for _ in range(400):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="does not hold the 1 items"):
        data.load("data:mnist", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB, of 400 MiB


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("flowers102", {"class_names.json": "no json"}),
        ("flowers102", {"class_names.json": '{"a": "b"}'}),
        ("flowers102", {"class_names.json": "[1, 2]"}),
        ("flowers102", {"class_names.json": "[" * 100_000}),
        ("ham10000", {"labels.csv": "image_id,dx\na,nv\n"}),
        ("ham10000", {"labels.csv": "image_id,dx,split\na,odd,test\n"}),
        ("imagenet_samples", {"class_names.json": '[["n9", "cat"]]'}),
        ("imagenet_samples", {"class_names.json": "3"}),
        ("imagenet_samples", {"class_names.json": '{"a": 1}'}),
        ("imagenet_samples", {"class_names.json": "[[]]"}),
    ],
)
def test_damaged_named_sets_are_refused_in_one_line(name: str, files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    for file in ("test.tar", "images.tar"):
        with tarfile.open(folder / file, "w") as tar:
            tar.addfile(tarfile.TarInfo("5/n1_x.jpg"))
            tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(InputError) as error:
        data.load(f"data:{name}", tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- real photographs
SHOWN = {"n02391049_zebra": "zebra", "n02123045_tabby": "Tabby", "n07747607_orange": "orange"}


def test_three_photographs_in_class_folders(data_root: Path, tmp_path: Path) -> None:
    """In alphabetical order they would be tench, goldfish and great white shark."""
    with tarfile.open(data_root / "imagenet_samples" / "images.tar") as tar:
        for member in tar:
            if (name := SHOWN.get(Path(member.name).stem.split(".")[0])) is not None:
                (tmp_path / "own" / name).mkdir(parents=True)
                (tmp_path / "own" / name / "a.jpg").write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    names = rt.read_class_names(data_root / "imagenet_samples" / "class_names.json")
    model = rt.load(
        "zoo:squeezenet1_0", weights=data_root / "squeezenet" / "squeezenet1_0_caffe.safetensors", class_names=names
    )
    own = data.match_labels(data.load(tmp_path / "own"), model.class_names)
    assert dict(zip(own.ids, own.labels, strict=True)) == {"Tabby/a.jpg": 281, "orange/a.jpg": 950, "zebra/a.jpg": 340}
    why = rt.explain(model, own, foil="runner-up")
    assert why.names == own.ids
    assert why.fact[own.ids.index("zebra/a.jpg")] == 340
    whole = data.load("imagenet_samples", data_root)
    assert data.match_labels(whole, model.class_names).labels == tuple(range(1000))
    assert data.match_labels(whole, None).labels == tuple(range(1000))
    pixels = [np.asarray(whole.reader.read(i)) for i in (340, 950)]
    for photo, position in zip(pixels, ("zebra/a.jpg", "orange/a.jpg"), strict=True):
        assert torch.equal(model.preprocess(photo)[0], why.images[own.ids.index(position)])  # an array, as from a file
