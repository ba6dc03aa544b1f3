"""Pictures of every mode, from paths, Pillow, bytes and arrays, and files that are none; shapes that are no images."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ratherthan as rt
from ratherthan.data.images import FORMATS, IMAGE_ENDINGS, CorruptImage, open_image
from ratherthan.errors import InputError, ModelError, RatherThanError
from ratherthan.render.figure import figure_png

GREY, COLOUR = rt.Images(1, preprocessing="none"), rt.Images(3, preprocessing="none")
RAMP = np.linspace(0, 1, 12).reshape(3, 4)
DEEP = (RAMP * 65535).round().astype(np.uint16)


def everywhere(image: Image.Image, ending: str, folder: Path) -> list[Any]:
    """The same picture as a path, as text, as bytes and as Pillow opens it."""
    path = folder / f"x.{ending}"
    image.save(path)
    return [path, str(path), path.read_bytes(), Image.open(path)]


def fed(raw: Any, inputs: rt.Images = GREY) -> Any:
    return inputs.batch(raw)[0].squeeze().numpy()


# --------------------------------------------------------------------------------------------- modes
@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("brightest", [255, 256, 4095, 65535])
def test_greys_of_16_bits_are_shares_of_65535_whatever_they_hold(ending: str, brightest: int, tmp_path: Path) -> None:
    values = (DEEP.astype(float) * brightest / 65535).round().astype(np.uint16)
    for raw in [*everywhere(Image.fromarray(values), ending, tmp_path), values]:
        np.testing.assert_allclose(fed(raw), values / 65535, atol=1e-7)  # nothing is lost


def test_floats_are_in_image_space_or_refused(tmp_path: Path) -> None:
    for raw in [*everywhere(Image.fromarray(RAMP.astype(np.float32)), "tif", tmp_path), RAMP]:
        np.testing.assert_allclose(fed(raw), RAMP, atol=1e-7)
    for values in (RAMP * 255, RAMP - 0.1, np.where(RAMP > 0.5, np.nan, RAMP)):
        for raw in [*everywhere(Image.fromarray(values.astype(np.float32)), "tif", tmp_path), values]:
            with pytest.raises(InputError, match="finite numbers in \\[0, 1\\]"):
                fed(raw)


@pytest.mark.parametrize("kind", [np.int32, np.uint32])
def test_whole_numbers_without_a_known_range_are_refused(kind: type, tmp_path: Path) -> None:
    for raw in everywhere(Image.fromarray((RAMP * 200).astype(np.int32)), "tif", tmp_path):
        with pytest.raises(InputError, match="no known range"):
            fed(raw)
    with pytest.raises(InputError, match="uint8, uint16"):
        fed((RAMP * 200).astype(kind))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_camera_turns_the_picture_wherever_it_comes_from(orientation: int, tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path, exif=exif)
    turn = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T, 6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).T, 8: np.rot90(pixels),
    }  # fmt: skip
    for raw in (path, path.read_bytes(), Image.open(path), Image.open(path).convert("RGB")):
        np.testing.assert_allclose(fed(raw), turn[orientation] / 255, atol=1e-6)


def test_palettes_and_transparency_are_looked_at_as_they_are_shown(tmp_path: Path) -> None:
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).convert("P")
    for raw in everywhere(colours, "png", tmp_path):
        assert fed(raw, COLOUR).reshape(3, 2).T.tolist() == [[1, 0, 0], [0, 0, 1]]
    half = Image.fromarray(np.array([[[0, 0, 0, 51]]], np.uint8))
    for raw in [*everywhere(half, "png", tmp_path), np.asarray(half), np.array([[[0.0, 0.0, 0.0, 0.2]]])]:
        assert fed(raw, COLOUR).tolist() == pytest.approx([0.8] * 3, abs=1e-6)


def test_colours_of_floats_keep_their_exactness_and_are_resized_as_greys_are() -> None:
    values = np.random.default_rng(0).random((9, 7, 3))
    np.testing.assert_allclose(COLOUR.batch(values)[0].movedim(0, 2), values, atol=1e-7)
    np.testing.assert_allclose(fed(values), values @ [0.299, 0.587, 0.114], atol=1e-6)
    small, grey = (rt.Images(c, size=4, interpolation="bicubic", preprocessing="none") for c in (3, 1))
    for channel in range(3):
        assert torch.equal(small.batch(values)[0, channel], grey.batch(values[..., channel])[0, 0])


def test_of_a_picture_of_two_levels_no_resampling_leaves_image_space() -> None:
    step = np.repeat([[0.0, 1.0]], 8, 1).repeat(16, 0)
    made = rt.Images(1, size=13, interpolation="lanczos", preprocessing="none").batch(step)
    assert made.min() >= 0
    assert made.max() <= 1


# --------------------------------------------------------------------------------------------- what is no picture
def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    spy = tmp_path / "gs"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(CorruptImage, match="not an image"):
        open_image(tmp_path / "x.png")
    assert not (tmp_path / "ran").exists()
    assert not {"EPS", "WMF", "MPEG"} & set(FORMATS)
    assert ".eps" not in IMAGE_ENDINGS
    assert {".png", ".jpg", ".tif", ".webp", ".bmp", ".gif", ".pgm"} <= IMAGE_ENDINGS


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for source in (tmp_path / "fifo.png", "/dev/zero", tmp_path):
        with pytest.raises(CorruptImage, match="not a regular file"):
            open_image(source)
    for source in ("a\0b.png", "a" * 5000):
        with pytest.raises(CorruptImage, match="cannot be read"):
            open_image(source)


def test_sizes_are_looked_at_before_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(DEEP).save(path)
    os.truncate(path, 6 * 2**30)  # a sparse file of 6 GiB with a good picture at its start
    with pytest.raises(CorruptImage, match="6,442,450,944 bytes, over the limit of 800,000,000"):
        open_image(path)


# --------------------------------------------------------------------------------------------- shapes
def test_the_network_decides_how_many_channels_it_takes() -> None:
    class HeadFirst(nn.Module):
        """Its first convolution in the list of modules runs last."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.stem = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.stem(x)).mean((2, 3))

    stem = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    for module in (stem, HeadFirst()):
        for raw in (torch.rand(2, 3, 16, 16), np.zeros((16, 16, 3), np.uint8)):
            assert rt.explain(module, raw, method="ixg").attribution.shape[1:] == (3, 16, 16)
    with pytest.raises(ModelError, match=r"12.*channels= says how many"):
        rt.explain(stem, torch.rand(1, 4, 16, 16), method="ixg")
    grey = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    with pytest.raises(ModelError, match=r"channels= says how many it takes; for grey images, images\.expand"):
        rt.explain(grey, torch.rand(1, 1, 8, 8), method="ixg")


SEQUENCE = nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
VOLUME = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
TABLE = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(SEQUENCE, (4, 2, 64)), (SEQUENCE, (1, 2, 64)), (VOLUME, (2, 1, 8, 16, 16)), (TABLE, (4, 6, 5)), (TABLE, (0, 5))],
)
def test_shapes_that_are_no_images_are_refused_before_any_pass(module: nn.Module, shape: tuple[int, ...]) -> None:
    passes: list[object] = []
    hook = module.register_forward_pre_hook(lambda *_: passes.append(1))
    for method in ("gradcam", "ixg", "lime"):
        with pytest.raises(InputError, match=r"\(N, C, H, W\) with N >= 1 is needed"):
            rt.explain(module, torch.rand(shape), method=method)
    hook.remove()
    assert not passes


@pytest.mark.parametrize("method", ["ixg", "gradient", "ig", "smoothgrad", "lrp", "deeplift"])
def test_rows_of_a_table_are_explained_printed_and_kept(method: str, tmp_path: Path) -> None:
    rows = torch.rand(4, 5)
    why = rt.explain(TABLE, rows, fact=0, foil=1, method=method)
    assert why.attribution.shape == (4, 5)
    assert torch.equal(why.heatmap(), why.attribution.unsqueeze(1))
    assert str(why).count("image ") == 4
    assert why.to_frame()["peak_column"].tolist() == why.attribution.argmax(1).tolist()
    assert "<img" not in why._repr_html_()
    assert torch.equal(rt.Explanation.load(why.save(tmp_path / "why.safetensors")).attribution, why.attribution)
    for ending in ("png", "html"):
        with pytest.raises(InputError, match=r"no picture: read to_frame"):
            why.save(tmp_path / f"why.{ending}")


@pytest.mark.parametrize("ask", ["occlusion", "lime", "pda", "counterfactual", "pertinent_positive"])
def test_what_alters_images_refuses_tables_in_one_line(ask: str) -> None:
    verb, method = (getattr(rt, ask), "cem") if ask.startswith(("count", "pert")) else (rt.explain, ask)
    with pytest.raises(RatherThanError, match=r"images \(N, C, H, W\), not what has shape \(4, 5\)"):
        verb(TABLE, torch.rand(4, 5), method=method)


@pytest.mark.parametrize("channels", [2, 4, 11])
def test_any_number_of_channels_is_drawn_as_their_mean(channels: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images = torch.rand(2, channels, 8, 8)
    why = rt.explain(net, images, foil=1)
    how = rt.counterfactual(net, images, foil="runner-up", method=rt.CEM(binary_search_steps=1, iterations=5))
    enough = rt.pertinent_positive(net, images)
    for result in (why, how, enough):
        assert result._repr_html_().startswith("<img")
        assert figure_png(result.plot()).startswith(b"\x89PNG")
        assert result.save(tmp_path / "x.html").stat().st_size > 5000
    drawn = why.panels()[0].image
    np.testing.assert_allclose(np.asarray(drawn)[..., 0], images[0].mean(0), atol=1e-6)


# --------------------------------------------------------------------------------------------- preprocessing
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_a_photograph_without_mean_and_std_is_warned_of_once_per_model() -> None:
    model, photo = rt.Model(network()), np.zeros((8, 8, 3), np.uint8)
    with pytest.warns(UserWarning, match="fed \\[0, 1\\] as it is: say preprocessing="):
        model.preprocess(photo)
    quiet = (rt.Model(network(), preprocessing="none"), rt.Model(network(), mean=0.5, std=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.preprocess(Image.fromarray(photo))  # said already
        rt.Model(network()).preprocess(torch.zeros(1, 3, 8, 8))  # tensors are the user's own
        for each in quiet:
            each.preprocess(photo)


@pytest.mark.parametrize(
    ("name", "mean", "std", "size", "said"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), "224 x 224 (crop), mean 0.485 0.456"),
        ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), (224, 224), "224 x 224"),
        ("half", (0.5,), (0.5,), None, "mean 0.5, std 0.5"),
        ("none", None, None, None, "as it is, in [0, 1]"),
    ],
)
def test_presets_of_preprocessing(name: Any, mean: Any, std: Any, size: Any, said: str, tmp_path: Path) -> None:
    model = rt.Model(network(), preprocessing=name)
    other = rt.Model(network(), mean=0.1, std=0.2, size=32).replace(preprocessing=name)
    direct = rt.Images(preprocessing=name)
    for inputs in (model.inputs, other.inputs, direct):
        assert (inputs.mean, inputs.std) == (mean, std)  # type: ignore[attr-defined]
    assert model.inputs.size == size  # type: ignore[attr-defined]
    photo = np.random.default_rng(0).integers(0, 256, (250, 300, 3), dtype=np.uint8)
    why = rt.explain(model, photo, foil=1, method="ixg")
    page = why.save(tmp_path / "why.html").read_text()
    for text in (repr(model), str(why).splitlines()[-1], page):
        assert f"input {said}" in text.replace("input: ", "input ")
    assert rt.Model(network(), preprocessing=name, mean=0.3).inputs.mean == (0.3,)  # type: ignore[attr-defined]


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'imagenet'"):
        rt.Model(network(), preprocessing="imagnet")


def test_the_imagenet_preset_is_torchvisions_recipe() -> None:
    """The shorter side to 256, the middle 224, and the network says what it says of photographs prepared so."""
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 320, 3), dtype=np.uint8))
    made = rt.Model(network(), preprocessing="imagenet").preprocess(photo)[0]
    middle = np.asarray(photo)[16:240, 48:272] / 255
    torch.testing.assert_close(made, torch.from_numpy(middle).permute(2, 0, 1).float())


def test_a_processor_that_shifts_the_picture_is_noticed() -> None:
    from ratherthan.loading import _check_prepares_alike

    inputs = rt.Images(3, mean=0.5, std=0.25, size=224, fit="crop", crop_fraction=0.875)

    def processor(shift: int, change: float) -> Any:
        def prepared(images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
            made = inputs.normalise(inputs.batch(images)).roll(shift, 3)
            return {"pixel_values": made + change * torch.randn(made.shape) / 255 / 0.25}

        return prepared

    _check_prepares_alike(inputs, processor(0, 1.0), "x")
    for shift, change in ((1, 0.0), (-1, 0.0), (0, 9.0)):
        with pytest.raises(ModelError, match="prepares images in a way that is not known"):
            _check_prepares_alike(inputs, processor(shift, change), "x")


def test_encoded_bytes_that_are_none_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(DEEP).save(buffer, "PNG")
    for data in (b"", b"%!PS", buffer.getvalue()[:40]):
        with pytest.raises(InputError, match="image"):
            fed(data)
