"""The examples on networks of MONAI, segmentation_models_pytorch, timm and torchvision, where those are installed."""

import inspect
import sys

import pytest
import torch
import torch.nn.functional as F

from lal_triton import functional

pytest.importorskip("PIL")
VOID = 255
LIBRARIES = {
    "monai_unet": "monai",
    "smp_deeplab": "segmentation_models_pytorch",
    "timm_backbone": "timm",
    "torchvision_deeplab": "torchvision",
}
# In float64 the sums over some thousand pixels, and through the layers, in another order.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def example(request, load_example):
    pytest.importorskip(LIBRARIES[request.param])
    return load_example(request.param)


def of(*names):
    return pytest.mark.parametrize("example", names, indirect=True)


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 3, (2, 16, 16), generator=generator)
    target[:, 5] = VOID
    return image, target.repeat_interleave(4, 1).repeat_interleave(4, 2)


def with_gradient(model, loss_of):
    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


def upsampled_loss(logits, target, align_corners=False):
    logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(logits, target, ignore_index=VOID)


@of(*LIBRARIES)
def test_the_example_learns(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example.py", "--steps=4", "--size=64"])
    example.main()
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


@of("torchvision_deeplab")
def test_torchvision_upsamples_after_the_classifier(example):
    model = example.make_model().double().eval()  # no dropout
    image, target = batch()

    def usual(model):
        outputs = model(image)
        return sum(
            weight * F.cross_entropy(outputs[name], target, ignore_index=VOID)
            for name, weight in (("out", 1), ("aux", 0.5))
        )

    found = with_gradient(model, lambda model: example.loss_of(model, image, target))
    torch.testing.assert_close(found, with_gradient(model, usual), **EXACT)


@of("smp_deeplab")
def test_smp_upsamples_with_aligned_corners(example):
    import segmentation_models_pytorch as smp

    model = example.make_model().double().eval()
    usual = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3).double().eval()
    usual.load_state_dict(model.state_dict())
    image, target = batch()
    found = with_gradient(model, lambda model: example.loss_of(model, image, target))
    expected = with_gradient(usual, lambda model: F.cross_entropy(model(image), target, ignore_index=VOID))
    torch.testing.assert_close(found, expected, **EXACT)


def test_networks_of_smp_that_take_upsampling():
    smp = pytest.importorskip("segmentation_models_pytorch")
    for name in ("DeepLabV3", "DeepLabV3Plus", "FPN", "PAN", "PSPNet", "Segformer", "UPerNet"):
        network = getattr(smp, name)
        options = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
        low, usual = network(**options, upsampling=1).eval(), network(**options).eval()
        usual.load_state_dict(low.state_dict())
        image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = low(image)
            assert logits.shape[2] <= 32
            torch.testing.assert_close(
                F.interpolate(logits, (128, 128), mode="bilinear", align_corners=True), usual(image)
            )
            usual.segmentation_head[1] = torch.nn.Identity()
            assert torch.equal(usual(image), logits)
    for name in ("Unet", "UnetPlusPlus", "Linknet", "MAnet", "DPT"):
        assert "upsampling" not in inspect.signature(getattr(smp, name)).parameters


@of("timm_backbone")
def test_timm_gives_features_for_a_head(example):
    model = example.make_model().double().eval()
    image, target = batch()

    def interpolated(model):
        backbone, head = model
        return functional.locally_adaptive_loss(
            F.interpolate(head(backbone(image)[0]), (64, 64), mode="bilinear"), target
        )

    found = with_gradient(model, lambda model: example.loss_of(model, image, target))
    torch.testing.assert_close(found, with_gradient(model, interpolated), **EXACT)


@of("monai_unet")
def test_monai_gives_labels_as_floats_with_a_channel(example):
    batch_of_monai = example.read_monai_batch(64)
    label = batch_of_monai["label"]
    assert label.shape == (2, 1, 64, 64)
    assert label.dtype == torch.float32
    batch_of_monai["image"] = batch_of_monai["image"].double()
    model = example.make_model().double()
    target = label.as_tensor()[:, 0].long()

    def usual(model):
        outputs = model(batch_of_monai["image"].as_tensor())
        assert [logits.shape[2] for logits in outputs] == [64, 32, 16]
        return sum(0.5**level * upsampled_loss(logits, target) for level, logits in enumerate(outputs))

    found = with_gradient(model, lambda model: example.loss_of(model, batch_of_monai))
    torch.testing.assert_close(found, with_gradient(model, usual), **EXACT)


def test_monais_losses_beside_ours():
    losses = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 1, 8, 8), generator=generator)
    theirs = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)(logits, target)
    ours = functional.focal_loss(logits, target, alpha=1.0, gamma=2.0)
    torch.testing.assert_close(theirs, ours / 3)  # the means of 384 float32 terms
    dice = {"to_onehot_y": True, "softmax": True}
    ours = losses.DiceLoss(**dice)(logits, target) + functional.cross_entropy(logits, target)
    torch.testing.assert_close(losses.DiceCELoss(**dice)(logits, target.float()), ours)
