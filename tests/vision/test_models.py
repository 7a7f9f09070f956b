"""The networks: plain at factor 1, exact when shared, trainable everywhere, and clear about bad input."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification, Trainer, TrainingArguments

import vision_hf
from vision_hf.layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d
from vision_hf.modeling_shared_conv import pad_same
from vision_hf.modeling_shared_efficientnet import drop_path

GOLDEN = Path(__file__).parent / "golden.json"
TINY = {
    "Xception": {
        "stem_channels": [8, 16],
        "stem_strides": [1, 1],
        "is_stem_separable": True,
        "stage_channels": [16, 32, 32],
        "stage_strides": [1, 2, 1],
        "stage_blocks": [1, 2, 1],
        "block_depths": [2, 2, 3],
        "grows_late": [False, True, False],
        "exit_channels": [48, 24],
    },
    "EfficientNet": {
        "stem_channels": 16,
        "out_channels": [16, 24],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "num_block_repeats": [2, 2],
        "expand_ratios": [1, 4],
        "head_channels": 32,
    },
    "ResNet": {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "stem_type": "cifar"},
}
each_family = pytest.mark.parametrize("family", TINY)


def make(family, head="ForImageClassification", **settings):
    config = getattr(vision_hf, f"Shared{family}Config")(**{**TINY[family], "num_labels": 5, **settings})
    return getattr(vision_hf, f"Shared{family}{head}")(config)


def expand_layers(module):
    """Replace every shared layer inside by plain convolutions."""
    for name, child in module.named_children():
        if isinstance(child, (SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d)):
            setattr(module, name, child.expand())
        else:
            expand_layers(child)
    return module


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Xception", {"sharing_factor": 2}),
        ("Xception", {"sharing_factor": 4, "pointwise_sharing_factor": 2}),
        ("EfficientNet", {"sharing_factor": 4, "pointwise_sharing_factor": 2}),
        ("ResNet", {"sharing_factor": 4, "pointwise_sharing_factor": 2, "share_dim": "in"}),
        ("ResNet", {"sharing_factor": 2, "pointwise_sharing_factor": 4, "share_dim": "both", "share_shortcut": True}),
        ("ResNet", {"sharing_factor": 4, "share_dim": "out"}),
    ],
)
def test_shared_network_equals_its_expansion(family, settings):
    model = make(family, **settings).double().eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.double)
    shared = model(images).logits.detach()
    plain = expand_layers(model)
    assert not any(isinstance(m, (SharedConv2d, SharedDepthwiseConv2d)) for m in plain.modules())
    torch.testing.assert_close(plain(images).logits, shared, rtol=0, atol=1e-10)


@each_family
def test_factor_1_has_the_weights_of_plain_layers(family):
    shapes = [tuple(parameter.shape) for parameter in make(family).parameters()]
    plain = [tuple(parameter.shape) for parameter in expand_layers(make(family)).parameters()]
    assert shapes == plain


class PlainXceptionBlock(nn.Module):
    """Written from the paper's figure, for comparison."""

    def __init__(self, widths, stride):
        super().__init__()
        self.layers = nn.ModuleList()
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
            layer = nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
            self.layers.append(layer)
        self.pool = nn.MaxPool2d(3, stride, 1) if stride != 1 else nn.Identity()
        self.skip = nn.Identity()
        if stride != 1 or widths[0] != widths[-1]:
            conv = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))

    def forward(self, hidden):
        branch = hidden
        for layer in self.layers:
            branch = layer(branch)
        return self.pool(branch) + self.skip(hidden)


def dense(before, after, stride=1):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def separable(before, after):
    depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def plain_author_cifar(divide=16):
    """The author's network for CIFAR with all widths divided, in plain layers."""
    c = [width // divide for width in (32, 64, 128, 512, 512, 512, 1024, 1536, 512)]
    return nn.Sequential(
        *(dense(3, c[0]), dense(c[0], c[1])),
        PlainXceptionBlock([c[1], c[2], c[2]], 1),
        PlainXceptionBlock([c[2], c[3], c[3]], 2),
        PlainXceptionBlock([c[3]] * 4, 1),
        PlainXceptionBlock([c[3]] * 4, 1),
        PlainXceptionBlock([c[3]] * 4, 2),
        PlainXceptionBlock([c[3]] * 4, 1),
        PlainXceptionBlock([c[3], c[3], c[6]], 2),
        *(separable(c[6], c[7]), separable(c[7], c[8])),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c[8], 10)),
    )


def copy_in_order(source, target):
    """Copy state between networks whose layers come in the same order, whatever they are called."""
    source, target = list(source.state_dict().values()), list(target.state_dict().values())
    assert [value.shape for value in source] == [value.shape for value in target]
    for before, after in zip(source, target, strict=True):
        after.copy_(before)


@pytest.mark.parametrize("is_training", [True, False])
def test_factor_1_equals_plain_xception(is_training):
    config = vision_hf.SharedXceptionConfig.from_preset(
        "author-cifar",
        stem_channels=[2, 4],
        stage_channels=[8, 32, 32, 32, 64],
        exit_channels=[96, 32],
        num_labels=10,
    )
    model, plain = vision_hf.SharedXceptionForImageClassification(config), plain_author_cifar()
    with torch.no_grad():
        copy_in_order(plain, model)
    model.train(is_training), plain.train(is_training)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images).logits, plain(images))


def test_same_padding_equals_transformers_efficientnet():
    theirs = EfficientNetForImageClassification(
        EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=7)
    ).eval()
    config = vision_hf.SharedEfficientNetConfig.from_preset("b0", num_labels=7, padding_style="same")
    config.batch_norm_eps = theirs.config.batch_norm_eps
    ours = vision_hf.SharedEfficientNetForImageClassification(config).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    with torch.no_grad():
        copy_in_order(theirs, ours)
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours(images).logits, theirs(images).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "kernel_size", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (9, 5, 2), (5, 3, 1)])
def test_same_padding_keeps_a_pixel_per_stride(size, kernel_size, stride):
    padded = pad_same(torch.ones(1, 1, size, size), kernel_size, stride)
    assert nn.functional.conv2d(padded, torch.ones(1, 1, kernel_size, kernel_size), stride=stride).shape[-1] == -(
        -size // stride
    )
    before = (padded.shape[-1] - size) // 2
    assert padded[0, 0, before, before] == 1 and (before == 0 or padded[0, 0, before - 1].sum() == 0)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    hidden = torch.ones(4000, 2, 3, 3)
    dropped = drop_path(hidden, 0.25)
    per_example = dropped.flatten(1)
    assert ((per_example == 0).all(1) | (per_example == 1 / 0.75).all(1)).all()
    assert abs((per_example[:, 0] == 0).float().mean().item() - 0.25) < 0.03
    assert abs(dropped.mean().item() - 1) < 0.03


def test_blocks_are_dropped_in_training_only():
    model = make("EfficientNet", drop_path_rate=0.9, dropout_rate=0.0)
    rates = [block.drop_rate for stage in model.model.stages for block in stage]
    assert rates == pytest.approx([0, 0.225, 0.45, 0.675])
    images = torch.randn(2, 3, 16, 16)
    model.eval()
    torch.testing.assert_close(model(images).logits, model(images).logits, rtol=0, atol=0)


@each_family
@pytest.mark.parametrize("factor", [1, 2])
def test_gradient_reaches_every_parameter(family, factor):
    model = make(family, sharing_factor=factor, pointwise_sharing_factor=factor, drop_path_rate=0.0)
    model(torch.randn(4, 3, 16, 16), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@each_family
def test_initialisation_does_not_depend_on_the_factor(family):
    # wide enough for a deviation to be estimated
    wide = {"Xception": {"stage_channels": [64, 256, 256]}, "EfficientNet": {"out_channels": [64, 64]}}
    for factor in (1, 4):
        model = make(family, sharing_factor=factor, **wide.get(family, {}))
        for name, module in model.named_modules():
            if isinstance(module, SharedDepthwiseConv2d) and module.weight.numel() > 200:
                expected = (2 / module.kernel_size[0] ** 2) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.25), name
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(module.weight, torch.ones_like(module.weight))
    logits = model.eval()(torch.randn(8, 3, 16, 16)).logits
    assert logits.softmax(-1).std(dim=0).max() > 1e-4, "an untrained network must not be constant"


@each_family
def test_backbone_gives_the_maps_of_chosen_stages(family):
    model = make(family, "Backbone", out_features=["stem", "stage2"]).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, 16, 16))
        everything = model(torch.randn(2, 3, 16, 16), output_hidden_states=True)
    assert [feature.shape[1] for feature in output.feature_maps] == model.channels
    assert output.hidden_states is None and len(everything.hidden_states) == len(model.stage_names)
    widths = [state.shape[1] for state in everything.hidden_states]
    assert widths == model.num_features


@each_family
def test_batch_mates_and_channels_last_change_nothing(family):
    model = make(family, sharing_factor=2).eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(image[None]).logits for image in images])
        other_layout = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other_layout, together, atol=1e-5, rtol=1e-5)


@each_family
def test_gradient_checkpointing_changes_no_gradient(family):
    model = make(family, sharing_factor=2, drop_path_rate=0.0, dropout_rate=0.0).train()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    model(images, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(images, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


@each_family
def test_exports_and_compiles_to_one_graph(family):
    model = make(family, sharing_factor=2).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        exported = torch.export.export(model, (images,))
        torch.testing.assert_close(exported.module()(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


@each_family
def test_sum_and_mean_differ_by_the_factor(family):
    gradients = {}
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        model = make(family, sharing_factor=4, grad_reduction=reduction, drop_path_rate=0.0, dropout_rate=0.0)
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        model(images, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        gradients[reduction] = {
            name: module.weight.grad
            for name, module in model.named_modules()
            if isinstance(module, (SharedConv2d, SharedDepthwiseConv2d)) and module.num_ties == 4
        }
    assert gradients["sum"]
    for name, gradient in gradients["sum"].items():
        torch.testing.assert_close(gradient, 4 * gradients["mean"][name], atol=1e-6, rtol=1e-4)


def test_author_resnet_repeats_after_the_norm():
    settings = {"sharing_factor": 4, "share_dim": "out", "batch_norm_position": "before"}
    model = make("ResNet", **settings).eval()
    layer = model.model.stages[1][0].layers[1]
    assert layer.norm.num_features == 4
    output = layer(torch.randn(1, layer.conv.in_channels, 4, 4))
    assert output.shape[1] == 16
    torch.testing.assert_close(output[:, :4], output[:, 4:8])


def tiny_logits(family):
    torch.manual_seed(0)
    model = make(family, sharing_factor=2).eval()
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)).logits


@each_family
def test_golden_outputs(family):
    expected = torch.tensor(json.loads(GOLDEN.read_text())[family])
    torch.testing.assert_close(tiny_logits(family), expected, atol=1e-4, rtol=1e-4)


BAD_CONFIGS = {
    "factor 0": ("Xception", {"sharing_factor": 0}, "at least 1, got 0"),
    "negative factor": ("ResNet", {"pointwise_sharing_factor": -2}, "`pointwise_sharing_factor` must be at least 1"),
    "too few factors": ("EfficientNet", {"sharing_factor": [2]}, "one for each of \\['stage1', 'stage2'\\]"),
    "factor as text": ("Xception", {"sharing_factor": "2"}, "sharing_factor"),
    "factor as float": ("Xception", {"sharing_factor": 2.0}, "sharing_factor"),
    "unknown reduction": ("Xception", {"grad_reduction": "max"}, '"mean" or "sum", got \'max\''),
    "unknown stage": ("Xception", {"unshared_stages": ["entry"]}, "has \\['entry'\\]; the stages are"),
    "dropout 1": ("ResNet", {"dropout_rate": 1.0}, "in \\[0, 1\\), got 1.0"),
    "drop path 2": ("EfficientNet", {"drop_path_rate": 2}, "`drop_path_rate` must be in"),
    "unknown padding": ("EfficientNet", {"padding_style": "valid"}, '"same" or "keras", got \'valid\''),
    "expansion 0": ("EfficientNet", {"expand_ratios": [0, 4]}, "`expand_ratios` must be at least 1"),
    "unknown activation": ("EfficientNet", {"hidden_act": "swich"}, "an activation of transformers, got 'swich'"),
    "codebook without a size": (
        "Xception",
        {"codebooks": {"stages.0.0.units.0.conv.depthwise": {"unit": "weight"}}},
        'a "size" and a "unit", got',
    ),
    "narrow bottleneck": ("ResNet", {"channel_divisor": 16}, "stage1.0: a bottleneck is a quarter as wide"),
    "strides of another length": ("Xception", {"stage_strides": [1]}, "`stage_strides` needs one value for each"),
    "stem without strides": ("Xception", {"stem_strides": []}, "one value per convolution of the stem"),
    "unknown layer": ("ResNet", {"layer_type": "wide"}, '`layer_type` must be "basic" or "bottleneck"'),
    "norm before inputs": ("ResNet", {"batch_norm_position": "before"}, 'needs `share_dim="out"`'),
    "unknown feature": ("ResNet", {"out_features": ["stage9"]}, "subset of stage_names"),
}


@pytest.mark.parametrize(("family", "settings", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_configuration_is_one_clear_error(family, settings, message):
    with pytest.raises(Exception, match=message):
        make(family, **settings)


BAD_MODELS = {
    "factor 3 of depthwise": (
        "Xception",
        {"sharing_factor": 3},
        "stage1.0.units.0.depthwise: .* 16 depthwise .* got 3",
    ),
    "factor of one stage": ("EfficientNet", {"sharing_factor": [1, 5]}, "stage2.0.depthwise: .* got 5"),
    "pointwise factor": ("EfficientNet", {"pointwise_sharing_factor": 32}, "stage1.0.project: .* the 16 input"),
    "factor of filters": ("ResNet", {"sharing_factor": 5, "share_dim": "out"}, "stage1.0.layers.1: .* output"),
    "divisor": ("ResNet", {"channel_divisor": 5}, "stage1: a channel divisor must divide the 32 channels, got 5"),
}


@pytest.mark.parametrize(("family", "settings", "message"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_factor_that_does_not_divide_names_the_layer(family, settings, message):
    with pytest.raises(ValueError, match=message):
        make(family, **settings)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 16, 16), (2, 16, 16, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\), got"):
        make("Xception")(torch.randn(shape))


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="presets \\['author-cifar', 'author-vs', 'full-728'\\], got 'tiny'"):
        vision_hf.SharedXceptionConfig.from_preset("tiny")


def test_author_s_preset_divides_what_stages_there_are():
    config = vision_hf.SharedXceptionConfig.from_preset(
        "author-cifar", exit_channels=[], unshared_stages=[], channel_divisor=2
    )
    assert config.channel_divisor == [1, 2, 2, 2, 2]


def test_another_factor_for_a_saved_folder_is_refused(tmp_path):
    make("Xception", sharing_factor=2).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|ignore_mismatched_sizes"):
        vision_hf.SharedXceptionForImageClassification.from_pretrained(tmp_path, sharing_factor=4)
    with pytest.raises(StrictDataclassClassValidationError, match="at least 1, got 0"):
        vision_hf.SharedXceptionForImageClassification.from_pretrained(tmp_path, sharing_factor=0)


@each_family
def test_trainer_learns_and_its_checkpoint_opens(family, tmp_path):
    model = make(family, sharing_factor=2, num_labels=2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (32,), generator=generator)
    images = torch.randn(32, 3, 16, 16, generator=generator) + 2 * labels[:, None, None, None]
    examples = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    before = model.eval()(images, labels=labels).loss.item()
    Trainer(model, arguments, train_dataset=examples).train()
    model.train()  # statistics of the batch: eight steps hardly move the running ones
    assert model(images, labels=labels).loss.item() < before
