"""Which networks LRP and DeepLIFT explain, and how exactly their maps add up: a sweep over three libraries.

    python benchmarks/rules.py                    # all networks, about an hour on one core
    python benchmarks/rules.py --only vit swin    # those whose name holds one of these

Libraries that are not installed are left out. Random weights, batch norm calibrated on one batch, two
images. For LRP the residual is what the maps and the share of constants miss, for DeepLIFT what a map misses, as a
share of the contrast.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import ratherthan as rt
from ratherthan import get_contrast, resolve

CLASSES = 5
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_FOUR = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
_PATCHES = {"image_size": 32, "patch_size": 8, **_SMALL}

# name: (kind, settings, side of the image)
TRANSFORMERS: dict[str, tuple[str, dict[str, object], int]] = {
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
    vit_base_patch16_siglip_224 vit_base_patch32_clip_224 samvit_base_patch16 flexivit_small naflexvit_base_patch16_gap
    vit_tiny_r_s16_p8_224 levit_128s levit_conv_128s pit_ti_224 pit_ti_distilled_224 nest_tiny jx_nest_tiny
    sequencer2d_s maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224
    gcvit_xxtiny efficientformer_l1 swiftformer_xs tiny_vit_5m_224 nextvit_small fasternet_t0 shvit_s1 mobilenetv5_base
    vit_small_patch16_dinov3 convnext_zepto_rms
"""


def networks() -> dict[str, tuple[str, Callable[[], tuple[nn.Module, int]]]]:
    """Library and builder by name."""
    return {
        **{f"transformers:{name}": lambda name=name: _transformers(name) for name in TRANSFORMERS},  # type: ignore[misc]
        **{f"torchvision:{name}": lambda name=name: _torchvision(name) for name in _TORCHVISION.split()},  # type: ignore[misc]
        **{f"timm:{name}": lambda name=name: _timm(name) for name in _TIMM.split()},  # type: ignore[misc]
    }  # type: ignore[return-value]


def _transformers(name: str) -> tuple[nn.Module, int]:
    import transformers

    kind, settings, side = TRANSFORMERS[name]
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config), side


def _torchvision(name: str) -> tuple[nn.Module, int]:
    import torchvision

    side = {"inception_v3": 96, "alexnet": 64, "maxvit_t": 64}.get(name, 64)
    settings: dict[str, object] = {"image_size": 64} if name.startswith("vit_") else {}
    if name == "vit_b_32":
        settings = {"image_size": 128}
        side = 128
    if name == "maxvit_t":
        module = torchvision.models.MaxVit((64, 64), 16, 2, [16, 24], [1, 1], 8, 0.0, num_classes=CLASSES)
        return module, side
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **settings), side


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    for side, settings in ((64, {}), (64, {"img_size": 64}), (128, {}), (128, {"img_size": 128}), (None, {})):
        try:
            module = timm.create_model(name, num_classes=CLASSES, **settings).eval()
            side = side or module.default_cfg["input_size"][-1]
            with torch.no_grad():
                module(torch.rand(2, 3, side, side))
            return module, side
        except (TypeError, RuntimeError, AssertionError, ValueError, AttributeError) as error:
            problem = error
    raise problem


def prepare(build: Callable[[], tuple[nn.Module, int]], dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights that let signals through, and two images."""
    torch.manual_seed(0)
    module, side = build()
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
        module(torch.rand(4, 3, side, side))
    return module.eval().to(dtype), torch.rand(2, 3, side, side, dtype=dtype)


def explained(module: nn.Module, x: torch.Tensor, method: str) -> float:
    """What a map (for LRP: and what constants absorb) misses, as a share of what it should add up to."""
    why = rt.explain(module, x, 1, 3, method, "mean")
    if method == "deeplift":
        missed = why.diagnostics["convergence delta"]
        return float((missed / (why.attribution.flatten(1).sum(1) - missed)).abs().max())
    seeds = get_contrast("mean").seed(why.logits, resolve(why.logits, 1, 3))
    constants = rt.LRP().propagate(rt.Model(module), x, seeds)[2]
    return float(((why.diagnostics["absorbed"].sum() - constants) / why.score.sum()).abs())


def main() -> None:
    """Print a line for every network and a table of counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    found = [each for each in ("transformers", "torchvision", "timm") if importlib.util.find_spec(each)]
    if "torchvision" in found:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hub"))
        importlib.import_module("conftest")  # lets it be imported where its operators do not fit
    chosen = {
        n: b for n, b in networks().items() if n.split(":")[0] in found and any(each in n for each in options.only)
    }
    for name, build in chosen.items():
        began = time.perf_counter()
        try:
            module, x = prepare(build, getattr(torch, options.dtype))
        except Exception as error:
            print(f"{name}: not built: {type(error).__name__} {str(error).splitlines()[0][:150]}", flush=True)
            continue
        said = []
        for method in ("lrp", "deeplift"):
            library = name.split(":")[0]
            try:
                said.append(f"{method} {explained(module, x, method):.0e}")
                counts[library, method]["explained"] += 1
            except rt.UnsupportedError as error:
                counts[library, method]["refused"] += 1
                reasons[f"{method}: {str(error)[:110]}"] += 1
                said.append(f"{method} refused: {error}")
            except Exception as error:
                counts[library, method]["crashed"] += 1
                said.append(f"{method} CRASHED: {type(error).__name__} {str(error).splitlines()[0][:200]}")
        print(f"{name} ({x.shape[-1]} px, {time.perf_counter() - began:.0f} s): " + "; ".join(said), flush=True)
    print("\n| library | method | explained | refused | crashed |\n| --- | --- | --- | --- | --- |")
    for (library, method), number in counts.items():
        print(f"| {library} | {method} | {number['explained']} | {number['refused']} | {number['crashed']} |")
    for reason, times in reasons.most_common():
        print(f"{times:4d}  {reason}")


if __name__ == "__main__":
    main()
