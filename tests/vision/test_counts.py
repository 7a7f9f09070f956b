"""Stored parameters of the published architectures, counted without allocating them."""

import pytest
import torch

from vision_hf import (
    SharedEfficientNetConfig,
    SharedEfficientNetForImageClassification,
    SharedResNetConfig,
    SharedResNetForImageClassification,
    SharedXceptionConfig,
    SharedXceptionForImageClassification,
)


def count(model_class, config):
    with torch.device("meta"):
        return model_class(config).num_parameters()


def count_xception(preset, **settings):
    config = SharedXceptionConfig.from_preset(preset, **{"num_labels": 10, **settings})
    return count(SharedXceptionForImageClassification, config)


def count_efficientnet(preset="b0", **settings):
    config = SharedEfficientNetConfig.from_preset(preset, **settings)
    return count(SharedEfficientNetForImageClassification, config)


def count_resnet(preset="resnet-50", **settings):
    return count(SharedResNetForImageClassification, SharedResNetConfig.from_preset(preset, **settings))


FACTORS = (1, 2, 4, 8)
# the thesis author's networks, ten classes: counts for s = 1, 2, 4, 8
AUTHOR = {
    ("author-cifar", "sharing_factor"): (7_649_898, 7_617_642, 7_601_514, 7_593_450),
    ("author-cifar", "pointwise_sharing_factor"): (7_649_898, 5_683_818, 4_700_778, 4_209_258),
    ("author-cifar", "channel_divisor"): (7_649_898, 3_012_458, 1_627_626, 1_168_682),
    ("author-vs", "sharing_factor"): (787_242, 777_450, 772_554, 770_106),
    ("author-vs", "pointwise_sharing_factor"): (787_242, 508_714, 369_450, 299_818),
    ("author-vs", "channel_divisor"): (787_242, 232_746, 103_338, 61_034),
}


def rows(table, factors=FACTORS):
    return [
        (*key, factor, value) for key, values in table.items() for factor, value in zip(factors, values, strict=True)
    ]


@pytest.mark.parametrize(("preset", "field", "factor", "expected"), rows(AUTHOR))
def test_author_xception(preset, field, factor, expected):
    assert count_xception(preset, **{field: factor}) == expected


# his ResNet-18: every convolution of the last three stages stores 1/s of its filters, batch norm on the stored ones
AUTHOR_RESNET = {
    "share_dim": "out",
    "batch_norm_position": "before",
    "share_shortcut": True,
    "unshared_stages": ["stage1"],
}


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, 11_173_962), (2, 5_664_458), (4, 2_909_706), (8, 1_532_330), (16, 843_642)]
)
def test_author_resnet_18(factor, expected):
    settings = {"sharing_factor": factor, "pointwise_sharing_factor": factor, **AUTHOR_RESNET}
    assert count_resnet("resnet-18-cifar", num_labels=10, **settings) == expected


@pytest.mark.parametrize(("factor", "expected"), [(2, 2_929_866), (4, 856_842), (8, 332_586), (16, 198_522)])
def test_author_resnet_18_with_channels_removed(factor, expected):
    divisors = [1, factor, factor, factor]
    assert count_resnet("resnet-18-cifar", num_labels=10, channel_divisor=divisors) == expected


WIDE = {"stage_channels": [128, 256, 736, 736, 1024]}
FULL = {
    ("dense", 10): (20_827_442, 20_723_726, 20_671_868, 20_645_939),
    ("dense", 100): (21_011_852, 20_908_136, 20_856_278, 20_830_349),
    ("separable", 10): (20_811_346, 20_707_486, 20_655_556, 20_629_591),
    ("separable", 100): (20_995_756, 20_891_896, 20_839_966, 20_814_001),
}


@pytest.mark.parametrize(("stem", "num_labels", "factor", "expected"), rows(FULL))
def test_full_xception(stem, num_labels, factor, expected):
    settings = {"is_stem_separable": stem == "separable", "num_labels": num_labels, "sharing_factor": factor}
    assert count_xception("full-728", **settings) == expected


@pytest.mark.parametrize(("factor", "expected"), [(1, 21_138_730), (2, 21_033_898), (4, 20_981_482), (8, 20_955_274)])
def test_full_xception_of_736_channels(factor, expected):
    assert count_xception("full-728", sharing_factor=factor, **WIDE) == expected
    assert count_xception("full-728", sharing_factor=16, **WIDE) < 20_955_274


@pytest.mark.parametrize(("factor", "expected"), [(2, 10_947_278), (4, 6_007_196), (8, 3_537_155)])
def test_full_xception_with_both_parts_shared(factor, expected):
    settings = {"is_stem_separable": False, "sharing_factor": factor, "pointwise_sharing_factor": factor}
    assert count_xception("full-728", **settings) == expected


B0 = {
    (1000,): (5_288_548, 5_197_540, 5_152_036, 5_129_284, 5_117_908),
    (100,): (4_135_648, 4_044_640, 3_999_136, 3_976_384, 3_965_008),
    (10,): (4_020_358, 3_929_350, 3_883_846, 3_861_094, 3_849_718),
}


@pytest.mark.parametrize(("num_labels", "factor", "expected"), rows(B0, (1, 2, 4, 8, 16)))
def test_efficientnet_b0(num_labels, factor, expected):
    assert count_efficientnet(num_labels=num_labels, sharing_factor=factor) == expected


# the published sizes of the plain family
FAMILY = (5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960)


@pytest.mark.parametrize(("number", "expected"), list(enumerate(FAMILY)))
def test_efficientnet_family(number, expected):
    assert count_efficientnet(f"b{number}", num_labels=1000) == expected


def test_parts_of_efficientnet_b0():
    with torch.device("meta"):
        model = SharedEfficientNetForImageClassification(SharedEfficientNetConfig(num_labels=1000))
    sizes = {}
    for name, parameter in model.named_parameters():
        kind = next((kind for kind in ("norm", "depthwise", "squeeze", "stem", "head") if kind in name), "other")
        sizes[kind] = sizes.get(kind, 0) + parameter.numel()
    assert sizes["depthwise"] == 182_016
    assert sizes["stem"] == 864
    assert sizes["squeeze"] == 636_540
    assert sizes["norm"] == 42_016
    assert sizes["head"] == 409_600


RESNET_50 = {
    (1000, "3x3"): (25_557_032, 19_898_408, 17_069_096, 15_654_440),
    (50, "3x3"): (23_610_482, 17_951_858, 15_122_546, 13_707_890),
    (1000, "3x3 and 1x1"): (25_557_032, 15_218_728, 10_049_576, 7_465_000),
    (50, "3x3 and 1x1"): (23_610_482, 13_272_178, 8_103_026, 5_518_450),
}


@pytest.mark.parametrize(("num_labels", "shared", "factor", "expected"), rows(RESNET_50))
def test_resnet_50(num_labels, shared, factor, expected):
    pointwise = factor if shared == "3x3 and 1x1" else 1
    settings = {"sharing_factor": factor, "pointwise_sharing_factor": pointwise, "num_labels": num_labels}
    assert count_resnet(**settings) == expected


@pytest.mark.parametrize(("factor", "expected"), [(2, 5_953_778), (4, 1_513_394), (8, 397_586)])
def test_resnet_50_with_channels_removed(factor, expected):
    assert count_resnet(num_labels=50, channel_divisor=factor) == expected


AUTHOR_50 = {
    ("shared shortcut",): (11_969_138, 6_148_466, 3_238_130),
    ("plain shortcut",): (13_348_978, 8_218_226, 5_652_850),
    ("removed",): (6_150_770, 1_746_290, 625_394),
}


@pytest.mark.parametrize(("kind", "factor", "expected"), rows(AUTHOR_50, (2, 4, 8)))
def test_author_resnet_50(kind, factor, expected):
    if kind == "removed":
        settings = {"channel_divisor": [1, factor, factor, factor]}
    else:
        settings = {"sharing_factor": factor, "pointwise_sharing_factor": factor, **AUTHOR_RESNET}
        settings["share_shortcut"] = kind == "shared shortcut"
    assert count_resnet(num_labels=50, **settings) == expected
