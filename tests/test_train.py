"""The training harness on data small enough to see everything: resuming, determinism, the card."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faces import write_faces
from ratherthan import Augmentation, InputError, Recipe, data, train, zoo
from ratherthan.files import locked
from ratherthan.replication.cdeepex import RareRecipe
from ratherthan.zoo.architectures import PlainNet, SqueezeNet
from ratherthan.zoo.training.recipes import Learner
from turns import of_today

BATCHES = 3  # of 128 of the 300 images
TURN = of_today(["killed", "identical"], 2)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_mnist(place: Path) -> Path:
    """A data root whose mnist/ holds 300 + 20 random images."""
    folder, random = place / "root" / "mnist", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for stem, count in (("train", 300), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = random.integers(0, 10, count, np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return place / "root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mnist(tmp_path)


def weights(path: Path) -> list[bytes]:
    return [tensor.numpy().tobytes() for _, tensor in sorted(load_file(path).items())]


def stop_in_epoch_two(done: int, total: int) -> None:
    assert total == 2 * BATCHES
    if done == BATCHES + 2:
        raise KeyboardInterrupt


KILLED = """
import os, signal, sys
import torch
from ratherthan import train
torch.set_num_threads(1)
def progress(done, total):
    if done == 2 * 3 + 1:
        os.kill(os.getpid(), signal.SIGKILL)
train("mnist", sys.argv[1], sys.argv[2], epochs=3, progress=progress)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads here as in the process that is killed: sums over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif("killed" not in TURN, reason="another day's turn")
@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_ends_at_the_same_weights(root: Path, tmp_path: Path) -> None:
    whole = train("zoo:mnist", root, tmp_path / "whole.safetensors", epochs=3)
    out = tmp_path / "killed" / "mnist.safetensors"
    died = subprocess.run([sys.executable, "-c", KILLED, str(root), str(out)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    steps: list[int] = []
    train("mnist", root, out, epochs=3, progress=lambda done, total: steps.append(done))
    assert steps == [2 * BATCHES + 1, 2 * BATCHES + 2, 3 * BATCHES]  # those of the third epoch
    assert weights(out) == weights(whole)
    assert sorted(path.name for path in out.parent.iterdir()) == ["mnist.json", "mnist.md", "mnist.safetensors"]


def test_seed_decides_and_random_numbers_stay(root: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = train("mnist", root, tmp_path / "a", epochs=1)
    assert first == tmp_path / "a" / "mnist.safetensors"
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = train("mnist", root, tmp_path / "b.safetensors", epochs=1)
    other = train("mnist", root, tmp_path / "c.safetensors", epochs=1, seed=1)
    assert weights(first) == weights(again) != weights(other)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "mnist.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train("mnist", root, out, epochs=2, progress=stop_in_epoch_two)
    with pytest.raises(InputError, match="other seed"):
        train("mnist", root, out, epochs=2, seed=1)
    out.with_suffix(".checkpoint").write_bytes(b"cut short")
    with pytest.raises(InputError, match="resume=False"):
        train("mnist", root, out, epochs=2)
    assert train("mnist", root, out, epochs=1, resume=False) == out


@pytest.mark.parametrize(
    "change",
    [
        {"done": "x"}, {"done": -5}, {"done": 3}, {"done": 1.5}, {"done": None}, {"skipped": None}, {"skipped": [1]},
        {"network": None}, {"network": {}}, {"network": PlainNet(24).state_dict()}, {"optimiser": []}, {"settings": 3},
    ],
)  # fmt: skip
def test_a_checkpoint_that_holds_something_else_is_one_line(root: Path, tmp_path: Path, change: dict) -> None:
    out = tmp_path / "mnist.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train("mnist", root, out, epochs=2, progress=stop_in_epoch_two)
    checkpoint = out.with_suffix(".checkpoint")
    state = torch.load(checkpoint, weights_only=True)
    for changed in (state | change, {k: v for k, v in state.items() if k not in change}):
        torch.save(changed, checkpoint)
        with pytest.raises(InputError, match="resume=False") as refused:
            train("mnist", root, out, epochs=2)
        assert len(str(refused.value).splitlines()) == 1
    torch.save(state, checkpoint)
    assert train("mnist", root, out, epochs=2) == out


@pytest.mark.skipif("identical" not in TURN, reason="another day's turn")
def test_identical_trainings_write_identical_files(root: Path, tmp_path: Path) -> None:
    """In processes of their own: what is random there is so from one process to the next."""
    code = "import sys; from ratherthan import train; train('mnist', *sys.argv[1:], epochs=1, limit=20)"
    written, alone = set(), {**os.environ, "OMP_NUM_THREADS": "1"}
    for number in range(2):
        out = tmp_path / str(number) / "mnist.safetensors"
        subprocess.run([sys.executable, "-c", code, str(root), str(out)], check=True, env=alone)
        written.add(out.read_bytes())
    assert len(written) == 1
    with safe_open(out, "pt") as file:
        assert list(file.metadata())
        assert json.loads(file.metadata()["class_names"]) == list("0123456789")
    assert set(load_file(out)) == set(PlainNet().state_dict())


def test_links_are_not_written_through(root: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out" / "v.safetensors", tmp_path / "victim"
    out.parent.mkdir()
    victim.write_text("mine")
    for name in ("v.safetensors.part", "v.checkpoint.part", "v.safetensors", "v.checkpoint", "v.json"):
        (out.parent / name).symlink_to(victim)
    train("mnist", root, out, epochs=1, limit=20, resume=False)
    assert victim.read_text() == "mine"
    (out.parent / ".v.safetensors.lock").symlink_to(victim)
    with pytest.raises((InputError, OSError)):
        train("mnist", root, out, epochs=1, limit=20)
    assert victim.read_text() == "mine"


def test_two_trainings_do_not_share_a_file(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    with locked(out), pytest.raises(InputError, match="another process is writing to"):
        train("mnist", root, out, epochs=1, limit=20)
    assert train("mnist", root, out, epochs=1, limit=20) == out


def test_the_card_tells_the_truth(root: Path, tmp_path: Path) -> None:
    out = train("mnist", root, tmp_path / "mnist.safetensors", epochs=2)
    card = json.loads(out.with_suffix(".json").read_text())
    test = data.load("mnist", root, "test")
    images = torch.stack([test[index][0] for index in range(20)])
    network, labels = zoo.load_weights(zoo.get("mnist"), out), torch.tensor(test.labels)
    right = [int(network(images[i : i + 1]).argmax()) == int(labels[i]) for i in range(20)]
    assert card["metrics"]["test"]["accuracy"] == pytest.approx(sum(right) / 20)
    recalls = [np.mean([right[i] for i in range(20) if labels[i] == label]) for label in set(labels.tolist())]
    assert card["metrics"]["test"]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert card["settings"]["data"] == data.load("mnist", root, "train").fingerprint()
    assert card["command"] == "ratherthan train zoo:mnist --data DIR --seed 0 --epochs 2"
    assert f"{sum(right) / 20:.2%}" in out.with_suffix(".md").read_text()


def test_fine_tuning_keeps_the_lower_half_and_skips_damaged_images(tmp_path: Path) -> None:
    folder = tmp_path / "flowers102"
    folder.mkdir()
    (folder / "class_names.json").write_text(json.dumps({str(k): f"flower {k}" for k in range(1, 103)}))
    for split in ("train", "valid", "test"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for number in (1, 2, 3):
                buffer = io.BytesIO()
                Image.effect_noise((240, 230), 60).convert("RGB").save(buffer, "JPEG")
                content = buffer.getvalue() if number < 3 else buffer.getvalue()[:200]
                member = tarfile.TarInfo(f"{number}/image_0000{number}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    start = SqueezeNet().state_dict()
    (tmp_path / "squeezenet").mkdir()
    save_file(start, tmp_path / "squeezenet" / "squeezenet1_0_caffe.safetensors")
    tuned = load_file(train("flowers102", tmp_path, tmp_path / "out.safetensors", epochs=1))
    same = {int(key.split(".")[1]) for key in tuned if "features" in key and torch.equal(start[key], tuned[key])}
    assert same == {0, 3, 4, 5, 7, 8}
    card = json.loads((tmp_path / "out.json").read_text())
    damaged = [f"{split}/3/image_00003.jpg" for split in ("test", "train", "valid")]
    assert [note.split(":")[0] for note in card["skipped"]] == damaged
    assert zoo.class_names(zoo.get("flowers102"), tmp_path / "out.safetensors")[1] == "flower 2"  # type: ignore[index]


def test_small_images_are_enlarged_to_what_a_network_wants(root: Path, tmp_path: Path) -> None:
    out = train("zoo:mnist_paper_64", root, tmp_path, epochs=1, limit=20)  # would stop at images of 28 x 28
    images = torch.stack([data.load("mnist", root, "test")[index][0] for index in range(20)])
    large = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    logits = zoo.load_weights(zoo.get("mnist_paper_64"), out)(large)
    right = (logits.argmax(1) == torch.tensor(data.load("mnist", root, "test").labels)).double().mean().item()
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["metrics"]["test"]["accuracy"] == pytest.approx(right)


def test_attributes_of_faces_are_learned(tmp_path: Path) -> None:
    write_faces(tmp_path / "celeba", 160)
    out = train("zoo:celeba_bangs", tmp_path, tmp_path / "bangs.safetensors", epochs=10)
    assert json.loads(out.with_suffix(".json").read_text())["metrics"]["test"]["accuracy"] > 0.9
    assert zoo.class_names(zoo.get("celeba_bangs"), out) == ("not bangs", "bangs")


def test_what_cannot_be_trained(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'abacus'"):
        train("mnist", root, tmp_path, device="abacus")
    with pytest.raises(InputError, match="at least 1"):
        train("mnist", root, tmp_path, epochs=0)
    with pytest.raises(InputError, match="no recipe"):
        train("squeezenet1_0", tmp_path)
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        train("zoo:mnst", tmp_path)


def test_augmentation_does_what_its_numbers_say() -> None:
    images, numbers = torch.rand(64, 1, 8, 8), torch.Generator().manual_seed(0)
    assert torch.allclose(Augmentation()(images, numbers), images, atol=1e-6)
    flipped = Augmentation(flips="h")(images, numbers)
    kept = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)])
    mirrored = torch.tensor([torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)])
    assert (kept ^ mirrored).all()
    assert 16 < int(kept.sum()) < 48
    dot = torch.zeros(64, 1, 33, 33)
    dot[:, :, 14:19, 14:19] = 1
    moved = Augmentation(shift=0.2)(dot, numbers)
    places = torch.stack([(moved.sum(axis) * torch.arange(33)).sum((1, 2)) / 25 - 16 for axis in (2, 3)])
    assert 4 < places.abs().max() <= 0.2 * 33 + 1e-3
    turned = Augmentation(rotation=90)(dot, numbers)
    assert torch.allclose(turned.sum((1, 2, 3)), torch.full((64,), 25.0), atol=1.5)


def test_the_last_epochs_see_whole_images() -> None:
    recipe = Recipe("mnist", 5, 1.0, augmentation=Augmentation(0.5, shift=0.1), uncropped=2)
    crops = [recipe.at(epoch, 5).augmentation.crop for epoch in range(5)]
    assert crops == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert recipe.at(4, 5).augmentation.shift == 0.1
    assert recipe.at(2, 3).augmentation.crop == 1.0  # counted from the end of however many there are


@dataclass(frozen=True)
class Watched(Recipe):
    """Writes down what every step of its training is given."""

    steps: ClassVar[list[tuple[float, tuple[int, ...]]]] = []

    def learner(self, network: torch.nn.Module) -> Learner:
        watched = Learner(self, network)
        step = watched.step

        def noted(images: torch.Tensor, targets: torch.Tensor, batch: int) -> float:
            self.steps.append((watched.parts["optimiser"].param_groups[0]["lr"], tuple(images.shape[2:])))
            return step(images, targets, batch)

        watched.step = noted  # type: ignore[method-assign]
        return watched


def test_every_step_has_the_rate_and_the_crop_of_its_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Watched("mnist", 3, 0.01, warmup=0.5, augmentation=Augmentation(0.5), uncropped=1)
    monkeypatch.setitem(zoo.ZOO, "mnist", replace(zoo.get("mnist"), recipe=recipe))
    monkeypatch.setattr(Watched, "steps", [])
    train("mnist", root, tmp_path)
    rates, sizes = zip(*recipe.steps, strict=True)
    # nine steps: up from 0.04 of the highest rate along a line to the middle, then down along half a cosine
    half = 4.5
    up = [0.01 * (0.04 + 0.96 * step / half) for step in range(5)]
    down = [0.005 * (1 + math.cos(math.pi * (step - half) / half)) for step in range(5, 9)]
    assert rates == pytest.approx(up + down)
    assert sizes == ((14, 14),) * 6 + ((28, 28),) * 3


def test_old_weights_stay_whole_where_new_ones_cannot_be_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train("mnist", root, tmp_path, epochs=1, limit=20)
    before, replaced = out.read_bytes(), os.replace

    def fail(source: str, target: Path) -> None:
        if Path(target) == out:
            raise OSError("the disk is full")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        train("mnist", root, tmp_path, epochs=1, limit=20, seed=1)
    assert out.read_bytes() == before
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [
        ".checkpoint", ".json", ".md", ".safetensors",
    ]  # fmt: skip


def test_few_images_of_one_class_are_left(root: Path) -> None:
    recipe, mnist = RareRecipe("mnist", 1, 1.0, rare=8, kept=3), data.load("mnist", root, "train")
    left = recipe.open(root, "train")
    eights = [name for name, label in zip(mnist.ids, mnist.labels, strict=True) if label == 8]
    assert [name for name, label in zip(left.ids, left.labels, strict=True) if label == 8] == eights[:3]
    assert set(mnist.ids) - set(left.ids) == set(eights[3:])
    assert recipe.open(root, "test").ids == data.load("mnist", root, "test").ids
    logits = torch.eye(10)[[8, 8, 1, 0]]
    assert recipe.metrics(logits, torch.tensor([8, 8, 8, 0]))["rare_class_accuracy"] == pytest.approx(2 / 3)


def test_rate_and_order() -> None:
    recipe = Recipe("mnist", 1, 2.0, warmup=0.5, balance=1.0)
    assert recipe.rate_at(0.0) == pytest.approx(0.08)
    assert recipe.rate_at(0.5) == pytest.approx(2.0)
    assert recipe.rate_at(0.75) == pytest.approx(1.0)
    labels = [0] * 900 + [1] * 90 + [2] * 10
    drawn = torch.tensor(labels)[recipe.order(labels, torch.Generator().manual_seed(0))].bincount().tolist()
    assert all(abs(count - 1000 / 3) < 60 for count in drawn)  # four standard deviations
    plain = Recipe("mnist", 1, 2.0).order(labels, torch.Generator().manual_seed(0))
    assert sorted(plain) == list(range(1000)) != plain
