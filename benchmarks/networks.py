"""Networks of transformers, torchvision and timm with random weights, small enough to be built by the hundred.

What `rules.py` and `sweep.py` sweep over, and the tests of the hub. Libraries that are not installed are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

CLASSES = 5
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_FOUR = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
_PATCHES = {"image_size": 32, "patch_size": 8, **_SMALL}

# name: (kind, settings, side of the image)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet": ("ResNet", {"embedding_size": 8, **_FOUR}, 64),
    "resnet-basic": ("ResNet", {"embedding_size": 8, "layer_type": "basic", **_FOUR}, 64),
    "convnext": ("ConvNext", _FOUR, 64),
    "convnextv2": ("ConvNextV2", _FOUR, 64),
    "vit": ("ViT", _PATCHES, 32),
    "vit-eager": ("ViT", {"attn_implementation": "eager", **_PATCHES}, 32),
    "deit": ("DeiT", _PATCHES, 32),
    "beit": ("Beit", {"use_relative_position_bias": True, **_PATCHES}, 32),
    "data2vec-vision": ("Data2VecVision", {"use_relative_position_bias": True, **_PATCHES}, 32),
    "swin": ("Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 4}, 32),
    "swinv2": ("Swinv2", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2],
        "window_size": 4}, 32),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25, "image_size": 64}, 64),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25, "image_size": 64}, 64),
    "mobilevit": ("MobileViT", {"image_size": 64, "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}, 64),
    "mobilevitv2": ("MobileViTV2", {"image_size": 64, "width_multiplier": 0.5}, 64),
    "efficientnet": ("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
        "image_size": 64}, 64),
    "regnet": ("RegNet", {"embedding_size": 8, "groups_width": 4, **_FOUR}, 64),
    "pvt": ("Pvt", {"image_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}, 64),
    "pvt_v2": ("PvtV2", {"image_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}, 64),
    "poolformer": ("PoolFormer", {**_FOUR}, 64),
    "levit": ("Levit", {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, 64),
    "cvt": ("Cvt", {"embed_dim": [8, 12, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 10]}, 64),
    "focalnet": ("FocalNet", {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
        "focal_windows": [3, 3], "hidden_sizes": [8, 16]}, 32),
    "dinov2": ("Dinov2", _PATCHES, 32),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"num_register_tokens": 4, **_PATCHES}, 32),
    "ijepa": ("IJepa", _PATCHES, 32),
    "bit": ("Bit", {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1],
        "num_groups": 4}, 64),
    "hiera": ("Hiera", {"image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 1, 2, 2],
        "depths": [1, 1, 2, 1]}, 64),
    "siglip": ("Siglip", {"vision_config": _PATCHES}, 32),
    "clip": ("CLIP", {"vision_config": _PATCHES}, 32),
    "metaclip_2": ("MetaClip2", {"vision_config": _PATCHES}, 32),
    "vit_msn": ("ViTMSN", _PATCHES, 32),
    "swiftformer": ("SwiftFormer", {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}, 64),
    "textnet": ("TextNet", {}, 64),
    "segformer": ("Segformer", {"hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}, 64),
    "hgnet_v2": ("HGNetV2", {}, 64),
    "donut-swin": ("DonutSwin", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
        "num_heads": [1, 2], "window_size": 4}, 32),
}  # fmt: skip

_TORCHVISION = """
    resnet18 resnext50_32x4d wide_resnet50_2 squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small
    mobilenet_v3_large efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_400mf mnasnet0_5 shufflenet_v2_x0_5
    densenet121 convnext_tiny vgg11 vgg11_bn alexnet googlenet inception_v3 vit_b_32 swin_t swin_v2_t maxvit_t
"""

_TIMM = """
    resnet10t resnet18 resnetv2_18 resnet50 seresnet18 res2net50_26w_4s skresnet18 resnest14d ecaresnet26t convnext_atto
    convnextv2_atto efficientnet_b0 tf_efficientnetv2_b0 nfnet_f0 regnety_002 regnetx_002 vgg11 densenet121 inception_v3
    mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium ghostnet_050 ghostnetv2_100 tinynet_e
    mobileone_s0 repvgg_a0 edgenext_xx_small fastvit_t8 poolformer_s12 poolformerv2_s12 hrnet_w18_small dla34 dla46_c
    xception41 rexnet_100 hardcorenas_a lcnet_050 mnasnet_small fbnetc_100 spnasnet_100 selecsls42 cspresnet50 darknet53
    vovnet39a nf_resnet50 eca_nfnet_l0 halonet26t lambda_resnet26t botnet26t_256 gernet_s repghostnet_050 repvit_m1
    starnet_s1 mambaout_femto inception_next_tiny caformer_s18 convformer_s18 efficientvit_b0 efficientvit_m0
    mobilevit_xxs mobilevitv2_050 pvt_v2_b0 focalnet_tiny_srf davit_tiny rdnet_tiny hgnet_tiny pnasnet5large
    nasnetalarge inception_resnet_v2 inception_v4 dpn48b convmixer_768_32 vit_tiny_patch16_224 deit3_small_patch16_224
    deit_tiny_distilled_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 eva02_tiny_patch14_224
    vit_small_patch16_rope_224 cait_xxs24_224 xcit_nano_12_p16_224 mixer_s32_224 gmlp_ti16_224 resmlp_12_224
    volo_d1_224 tnt_s_legacy_patch16_224 tnt_s_patch16_224 twins_pcpvt_small twins_svt_small convit_tiny hiera_tiny_224
    vitamin_small_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224
    vit_relpos_small_patch16_224 vit_dlittle_patch16_reg1_gap_256 vit_betwixt_patch16_reg4_gap_256
    vit_base_patch16_siglip_224 vit_base_patch32_clip_224 samvit_base_patch16
    flexivit_small naflexvit_base_patch16_gap
    vit_tiny_r_s16_p8_224 levit_128s levit_conv_128s pit_ti_224 pit_ti_distilled_224 nest_tiny jx_nest_tiny
    sequencer2d_s maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224
    gcvit_xxtiny efficientformer_l1 swiftformer_xs tiny_vit_5m_224 nextvit_small fasternet_t0 shvit_s1 mobilenetv5_base
    vit_small_patch16_dinov3 convnext_zepto_rms
"""

Builder = Callable[[], tuple[nn.Module, int]]
Special = tuple[nn.Module, tuple[int, ...]]

# for the sweep over layers: left out because they take long, and what has 4 x 4 cells and more as it is
_SLOW = """
    wide_resnet50_2 vgg11 vgg11_bn alexnet nfnet_f0 eca_nfnet_l0 nf_resnet50 inception_v4 inception_resnet_v2 xception41
    darknet53 cspresnet50 vovnet39a dpn48b convmixer_768_32 pnasnet5large nasnetalarge deit3_small_patch16_224
    beit_base_patch16_224 beitv2_base_patch16_224 vit_small_patch16_rope_224 volo_d1_224 convformer_s18
    vitamin_small_224 vit_dlittle_patch16_reg1_gap_256 vit_betwixt_patch16_reg4_gap_256 vit_base_patch16_siglip_224
    davit_tiny vit_base_patch32_clip_224 samvit_base_patch16
    flexivit_small naflexvit_base_patch16_gap jx_nest_tiny rdnet_tiny
    maxxvit_rmlp_nano_rw_256 mobilenetv5_base res2net50_26w_4s timm:inception_v3 coatnet_nano_rw_224
"""
_FINE = """
    vit vit-eager deit beit data2vec-vision swin swinv2 cvt focalnet dinov2 dinov2_with_registers ijepa siglip clip
    metaclip_2 vit_msn donut-swin inception_v3 vit_b_32 halonet26t botnet26t_256
    vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224
    gmlp_ti16_224 resmlp_12_224 tnt_s_legacy_patch16_224 tnt_s_patch16_224 convit_tiny vit_relpos_small_patch16_224
    nest_tiny efficientformer_l1 vit_small_patch16_dinov3 sequencer2d_s
"""


def let_torchvision_in() -> None:
    """Let it be imported where its operators do not fit the installed torch; the tests of the hub do it themselves."""
    if importlib.util.find_spec("torchvision"):
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hub"))
        importlib.import_module("conftest")


def networks(scale: int = 1) -> dict[str, Builder]:
    """Builders by "library:name"; each gives the network and the side of its images.

    Args:
        scale: How many times larger than usual the images are, for a grid of more cells.
    """
    found = {each for each in ("transformers", "torchvision", "timm") if importlib.util.find_spec(each)}
    makers = {
        "transformers": (_transformers, TRANSFORMERS),
        "torchvision": (_torchvision, _TORCHVISION.split()),
        "timm": (_timm, _TIMM.split()),
    }
    return {
        f"{library}:{name}": lambda make=make, name=name: make(name, scale)  # type: ignore[misc]
        for library, (make, names) in makers.items()
        if library in found
        for name in names
    }


def _transformers(name: str, scale: int) -> tuple[nn.Module, int]:
    import transformers

    kind, settings, side = TRANSFORMERS[name]
    settings = _larger(settings, scale)
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config), scale * side


def _larger(settings: dict[str, Any], scale: int) -> dict[str, Any]:
    """The settings of a network for larger images."""
    larger = dict(settings)
    if "vision_config" in settings:
        larger["vision_config"] = _larger(settings["vision_config"], scale)
    if "image_size" in settings:
        size = settings["image_size"]
        larger["image_size"] = [scale * each for each in size] if isinstance(size, list) else scale * size
    return larger


def _torchvision(name: str, scale: int) -> tuple[nn.Module, int]:
    import torchvision

    side = scale * {"inception_v3": 96, "vit_b_32": 128}.get(name, 64)
    settings: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name == "maxvit_t":
        size, window = (side, side), side // 32
        return torchvision.models.MaxVit(size, 16, window, [16, 24], [1, 1], 8, 0.0, num_classes=CLASSES), side
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **settings), side


def _timm(name: str, scale: int) -> tuple[nn.Module, int]:
    import timm

    sides = [(side, size) for side in (64 * scale, 128 * scale) for size in ({}, {"img_size": side})]
    for side, settings in (*sides, (None, {})):
        try:
            module = timm.create_model(name, num_classes=CLASSES, **settings).eval()
            side = side or module.default_cfg["input_size"][-1]
            with torch.no_grad():
                module(torch.rand(2, 3, side, side))
            return module, side
        except (TypeError, RuntimeError, AssertionError, ValueError, AttributeError) as error:
            problem = error
    raise problem


def prepare(
    build: Callable[[], tuple[nn.Module, int | tuple[int, ...]]], dtype: torch.dtype, seed: int = 0
) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights that let signals through, batch norm calibrated, and two images.

    Args:
        build: Gives the network and the side of its images, or their shape (C, H, W).
        dtype: Of both.
        seed: Of all random numbers.
    """
    torch.manual_seed(seed)
    module, size = build()
    shape = (3, size, size) if isinstance(size, int) else size
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.2, 1.2)
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.momentum = None
            each.reset_running_stats()
    module.eval()
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.train()
    with torch.no_grad():
        module(torch.rand(4, *shape))
    return module.eval().to(dtype), torch.rand(2, *shape, dtype=dtype)


SWEPT = {
    f"{library}:{name}": 1 if name in _FINE.split() else 2
    for library, names in (
        ("transformers", TRANSFORMERS),
        ("torchvision", _TORCHVISION.split()),
        ("timm", _TIMM.split()),
    )
    for name in names
    if not {name, f"{library}:{name}"} & set(_SLOW.split())
}
"""How many times larger than usual the images of each network of the sweep are."""


# ------------------------------------------------------------------------------- where tokens are not just the image
class Handled(nn.Module):
    """A network and what is done to its images and its output.

    Args:
        network: The network.
        call: A function of it and the images; gives the logits.
    """

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        return self.call(self.network, x)


class LearnedQueries(nn.Module):
    """Sixteen learned queries look at a 4 x 4 plane, as in Q-Former; their mean is classified. No query is a place."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Sequential(nn.Conv2d(3, 24, 8, 8), nn.GELU(), nn.Conv2d(24, 24, 1))
        self.queries = nn.Parameter(torch.randn(1, 16, 24))
        self.look = nn.MultiheadAttention(24, 4, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(24), nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) to logits."""
        tokens = self.plane(x).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(x), -1, -1)
        queries = self.norm(queries + self.look(queries, tokens, tokens, need_weights=False)[0])
        return self.head((queries + self.mlp(queries)).mean(1))


def _detr() -> Special:
    import transformers

    backbone = transformers.ResNetConfig(embedding_size=8, **_FOUR, out_features=["stage4"])
    settings = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        num_queries=16, encoder_layers=1, decoder_layers=1, num_labels=CLASSES, **settings,
    )  # fmt: skip
    return Handled(transformers.DetrForObjectDetection(config), lambda m, x: m(x).logits[:, 3]), (3, 128, 128)


def _yolos() -> Special:
    import transformers

    config = transformers.YolosConfig(
        **_PATCHES | {"image_size": [32, 32]}, num_detection_tokens=16, num_labels=CLASSES
    )
    return Handled(transformers.YolosForObjectDetection(config), lambda m, x: m(x).logits[:, 3]), (3, 32, 32)


def _segformer() -> Special:
    import transformers

    config = transformers.SegformerConfig(num_labels=CLASSES, **TRANSFORMERS["segformer"][1])
    module = transformers.SegformerForSemanticSegmentation(config)
    return Handled(module, lambda m, x: m(x).logits.mean((2, 3))), (3, 256, 256)


def _clip() -> Special:
    import transformers

    text = {**_SMALL, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "pad_token_id": 0}
    module = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=_PATCHES, projection_dim=16)
    )
    prompts = torch.randint(1, 49, (CLASSES, 8))
    prompts[:, -1] = 49
    return Handled(module, lambda m, x: m(pixel_values=x, input_ids=prompts).logits_per_image), (3, 32, 32)


def _vit_inside() -> Special:
    import transformers

    module = transformers.ViTForImageClassification(
        transformers.ViTConfig(**_PATCHES | {"image_size": 48}, num_labels=CLASSES)
    )
    resize = torch.nn.functional.interpolate
    return Handled(module, lambda m, x: m(resize(x, size=(48, 48), mode="bilinear")).logits), (3, 60, 80)


def _spectrogram(by_time: bool) -> Special:
    import transformers

    settings = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "num_mel_bins": 32, "max_length": 64}
    module = transformers.ASTForAudioClassification(transformers.ASTConfig(**_SMALL, **settings, num_labels=CLASSES))
    if by_time:  # (time, frequency), as the network takes it
        return Handled(module, lambda m, x: m(x[:, 0]).logits), (1, 64, 32)
    return Handled(module, lambda m, x: m(x[:, 0].transpose(1, 2)).logits), (1, 32, 64)


def _coat() -> Special:
    import timm

    return timm.create_model("coat_tiny", num_classes=CLASSES, img_size=64), (3, 64, 64)


SPECIAL: dict[str, Callable[[], Special]] = {
    "special:DETR, classes of one query": _detr,
    "special:YOLOS, classes of one token": _yolos,
    "special:SegFormer, mean over the pixels": _segformer,
    "special:CLIP with prompts in forward": _clip,
    "special:ViT that resizes its images": _vit_inside,
    "special:AST, time down and frequency across": partial(_spectrogram, True),
    "special:AST, frequency down and time across": partial(_spectrogram, False),
    "special:CoaT, blocks of several outputs": _coat,
    "special:learned queries": lambda: (LearnedQueries(), (3, 32, 32)),
}
