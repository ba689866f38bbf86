"""The adapter to mmsegmentation, against its formulas and, where it is installed, itself; else with a stand-in."""

import importlib.util
import sys
import types
import warnings

import mmseg_stand_in
import pytest
import torch
import torch.nn.functional as F
from criterion import assert_as_accurate
from problems import make_problem
from torch import nn

from lal_triton import functional

INSTALLED = importlib.util.find_spec("mmseg") is not None
needs_mmseg = pytest.mark.skipif(not INSTALLED, reason="mmsegmentation is not installed")
CLASS_WEIGHT = [0.25, 1.0, 2.0, 0.5]
EPS = torch.finfo(torch.float32).eps
# Float64 sums of some hundred terms of the same size, in another order.
EXACT = {"rtol": 1e-12, "atol": 1e-15}


class NoOps(types.ModuleType):
    """In place of mmcv's compiled operations, which mmcv-lite lacks: mmseg imports their names."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return pytest.fail


@pytest.fixture(scope="module")
def adapter():
    if INSTALLED:
        if importlib.util.find_spec("mmcv._ext") is None:
            sys.modules["mmcv._ext"] = NoOps("mmcv._ext")
    else:
        mmseg_stand_in.install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mmcv and mmseg, about newer versions of what they import
        from lal_triton.integrations import mmseg
    yield mmseg
    if not INSTALLED:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mmseg"]:
            del sys.modules[name]
        del sys.modules["lal_triton.integrations.mmseg"]


@pytest.fixture
def build(adapter):
    def build(**config):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmseg's advice on avg_non_ignore
            return adapter.MODELS.build(config)

    return build


def problem():
    """Float64 logits at half the resolution of the labels, some of which are void, and weights of the pixels."""
    logits, _ = make_problem((2, 4, 6, 8))
    _, label = make_problem((3, 4, 12, 16), seed=1)  # the last image of a problem is void
    weight = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(2)).to(logits.device)
    return logits.double(), label[:2], weight


def interpolate(logits, align_corners=False):
    return F.interpolate(logits, (12, 16), mode="bilinear", align_corners=align_corners)


def mmseg_mean(losses, label, class_weight, avg_factor, ignore_index, avg_non_ignore):
    """mmseg/models/losses/cross_entropy_loss.py, and weight_reduce_loss of utils.py."""
    if avg_factor is None:
        counted = label != ignore_index if avg_non_ignore else torch.ones_like(label, dtype=torch.bool)
        inside = counted & (label < 4)
        avg_factor = counted.sum().item() if class_weight is None else class_weight[label[inside]].sum()
    return losses.sum() / (avg_factor + EPS)


def step(loss_of, logits):
    leaf = logits.detach().requires_grad_()
    loss = loss_of(leaf)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("avg_non_ignore", [False, True])
@pytest.mark.parametrize("ignore_index", [255, 1])
@pytest.mark.parametrize("class_weight", [None, CLASS_WEIGHT])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("avg_factor", "override"), [(None, None), (77.0, None), (None, "sum"), (None, "none"), (9, "none")]
)
def test_cross_entropy_is_that_of_mmseg(
    build, align_corners, avg_non_ignore, ignore_index, class_weight, weighted, avg_factor, override
):
    logits, label, weight = problem()
    if ignore_index == 1:
        label = label.where(label != 255, 1)
    call = {
        "weight": weight if weighted else None,
        "avg_factor": avg_factor,
        "reduction_override": override,
        "ignore_index": ignore_index,
    }
    options = {"class_weight": class_weight, "loss_weight": 0.5, "avg_non_ignore": avg_non_ignore}
    ours = build(type="UpsampledCrossEntropyLoss", backend="reference", **options).to(logits.device)

    def expected(logits):
        tensor = None if class_weight is None else logits.new_tensor(class_weight)
        losses = F.cross_entropy(
            interpolate(logits, align_corners), label, tensor, ignore_index=ignore_index, reduction="none"
        )
        losses = losses * weight.double() if weighted else losses
        if override is None:
            losses = mmseg_mean(losses, label, tensor, avg_factor, ignore_index, avg_non_ignore)
        return 0.5 * (losses.sum() if override == "sum" else losses)

    found = step(lambda logits: ours(logits, label, **call, align_corners=align_corners), logits)
    torch.testing.assert_close(found, step(expected, logits), **EXACT)
    if not INSTALLED:
        return
    theirs = build(type="CrossEntropyLoss", **options)
    if class_weight is not None and ignore_index == 255 and (avg_factor, override) == (None, None):
        with pytest.raises(IndexError):  # it reads class_weight[255]
            theirs(interpolate(logits, align_corners), label, **call)
    else:
        expected = step(lambda logits: theirs(interpolate(logits, align_corners), label, **call), logits)
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("options", [{}, {"avg_non_ignore": True}, {"class_weight": CLASS_WEIGHT}])
@pytest.mark.parametrize("name", ["UpsampledCrossEntropyLoss", "UpsampledFocalLoss", "LocallyAdaptiveLoss"])
def test_void_batch_gives_zero(build, name, options):
    logits, label, _ = problem()
    loss = build(type=name, **options).to(logits.device)
    value, gradient = step(lambda logits: loss(logits, torch.full_like(label, 255), ignore_index=255), logits)
    assert value == 0
    assert not gradient.any()


def test_focal_mean_is_over_all_pixels_or_the_valid_ones(build):
    logits, label, weight = problem()
    total = functional.focal_loss(logits, label, alpha=0.5, pixel_weight=weight, reduction="sum")
    for avg_non_ignore, pixels in ((False, label.numel()), (True, (label != 255).sum().item())):
        loss = build(type="UpsampledFocalLoss", alpha=0.5, avg_non_ignore=avg_non_ignore)
        torch.testing.assert_close(loss(logits, label, weight=weight), total / (pixels + EPS), **EXACT)


@pytest.mark.parametrize("override", [None, "sum", "none"])
def test_lal_pools_as_the_package_does(build, override):
    logits, label, weight = problem()
    loss = build(type="LocallyAdaptiveLoss", kernel_size=3, loss_weight=2.0, class_weight=CLASS_WEIGHT)
    options = {"weight": logits.new_tensor(CLASS_WEIGHT), "pixel_weight": weight, "ignore_index": 2}
    label = label.where(label != 255, 2)

    def expected(logits):
        reduction = override or "minkowski"
        return 2 * functional.locally_adaptive_loss(logits, label, kernel_size=3, reduction=reduction, **options)

    found = step(
        lambda logits: loss.to(logits.device)(
            logits, label, weight=weight, reduction_override=override, ignore_index=2
        ),
        logits,
    )
    torch.testing.assert_close(found, step(expected, logits), **EXACT)


def test_lal_mean_with_a_stride_counts_the_centres(build):
    logits, label, _ = problem()
    total = functional.locally_adaptive_loss(logits, label, stride=2, reduction="sum")
    loss = build(type="LocallyAdaptiveLoss", stride=2, reduction="mean")
    torch.testing.assert_close(loss(logits, label), total / (2 * 6 * 8 + EPS), **EXACT)


def test_a_mask_is_taken_as_weights(build):
    logits, label, weight = problem()
    loss = build(type="UpsampledCrossEntropyLoss")
    assert loss(logits, label, weight=weight > 0.5) == loss(logits, label, weight=(weight > 0.5).float())


def test_a_loss_has_a_name_and_no_state(build):
    loss = build(type="LocallyAdaptiveLoss", class_weight=CLASS_WEIGHT)
    assert loss.loss_name == "loss_lal"
    assert not loss.state_dict()
    assert build(type="UpsampledFocalLoss", loss_name="loss_aux").loss_name == "loss_aux"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_sigmoid": True}, ValueError, "use_sigmoid is True"),
        ({"ignore_index": 0}, TypeError, "ignore_index is not an option"),
        ({"align_corners": True}, TypeError, "align_corners is not an option"),
        ({"weight": None}, TypeError, "pass class_weight"),
        ({"process_group": "world"}, TypeError, "process_group is not an option"),
        ({"class_weight": [1.0, -1.0]}, ValueError, "class_weight holds -1.0"),
        ({"kernel_size": 4}, ValueError, "kernel_size is 4"),
    ],
)
def test_a_bad_config_is_named(build, options, error, message):
    with pytest.raises(error, match=message):
        build(type="LocallyAdaptiveLoss", **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"avg_factor": 3.0}, ValueError, 'expected None with reduction="minkowski"'),
        ({"avg_factor": 3.0, "reduction_override": "sum"}, ValueError, 'expected None with reduction="sum"'),
        ({"reduction_override": "minkowski"}, ValueError, "reduction_override is 'minkowski'"),
        ({"ignore_index": None}, TypeError, "ignore_index is None"),
    ],
)
def test_a_bad_call_is_named(build, call, error, message):
    logits, label, _ = problem()
    with pytest.raises(error, match=message):
        build(type="LocallyAdaptiveLoss")(logits, label, **call)


class Recording(nn.Module):
    """A loss of somebody else, and a sampler: both need logits of the labels' size."""

    loss_name = "loss_other"

    def __init__(self, weight=None):
        super().__init__()
        self.calls, self.weight = [], weight

    def forward(self, logits, label, weight=None, ignore_index=None):
        self.calls.append((logits, label, weight, ignore_index))
        return logits.mean()

    def sample(self, logits, label):
        self.calls.append((logits, label))
        return self.weight


def samples_of(label):
    data = [types.SimpleNamespace(data=image[None]) for image in label]
    return [types.SimpleNamespace(gt_sem_seg=image) for image in data]


def make_head(build, loss_decode, **options):
    torch.manual_seed(0)
    if INSTALLED:
        options.update(num_convs=0, concat_input=False, dropout_ratio=0)
    head = build(
        type="LowResolutionHead",
        head="FCNHead",
        in_channels=4,
        channels=4,
        num_classes=4,
        loss_decode=loss_decode,
        **options,
    )
    nn.init.dirac_(head.conv_seg.weight)  # the logits are the features
    nn.init.zeros_(head.conv_seg.bias)
    return head.double()


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_head_gives_its_logits_as_they_are(build, align_corners):
    logits, label, _ = problem()
    label = label.where(label != 255, 3)
    losses = [{"type": "UpsampledCrossEntropyLoss"}, {"type": "LocallyAdaptiveLoss", "loss_name": "loss_ce"}]
    head = make_head(build, losses, align_corners=align_corners, ignore_index=3).to(logits.device)
    options = {"ignore_index": 3, "align_corners": align_corners}
    cross_entropy = functional.cross_entropy(logits, label, reduction="sum", **options) / (label.numel() + EPS)
    lal = functional.locally_adaptive_loss(logits, label, **options)
    found = head.loss([logits], samples_of(label), {})
    assert set(found) == {"loss_ce", "acc_seg"}
    torch.testing.assert_close(found["loss_ce"], cross_entropy + lal, **EXACT)

    loss = {"type": "UpsampledCrossEntropyLoss", "loss_weight": 3.0}
    head = make_head(build, loss, align_corners=align_corners, ignore_index=3).to(logits.device)
    found = head.loss([logits], samples_of(label), {})
    torch.testing.assert_close(found["loss_ce"], 3 * cross_entropy, **EXACT)


def test_other_losses_and_the_sampler_see_interpolated_logits(build):
    logits, label, weight = problem()
    head = make_head(build, {"type": "UpsampledCrossEntropyLoss"}).to(logits.device)
    other, sampler = Recording(), Recording(weight)
    head.loss_decode = nn.ModuleList([head.loss_decode, other])
    head.sampler = sampler
    found = head.loss([logits], samples_of(label), {})
    expected = functional.cross_entropy(logits, label, pixel_weight=weight, reduction="sum") / (label.numel() + EPS)
    torch.testing.assert_close(found["loss_ce"], expected, **EXACT)
    ((seen, seen_label, seen_weight, ignore_index),) = other.calls
    torch.testing.assert_close(seen, interpolate(logits), **EXACT)
    assert seen.requires_grad
    assert torch.equal(seen_label, label)
    assert seen_weight is weight
    assert ignore_index == 255
    ((sampled, sampled_label),) = sampler.calls
    assert torch.equal(sampled, seen)
    assert not sampled.requires_grad
    assert torch.equal(sampled_label, label[:, None])


@pytest.mark.parametrize("ignore_index", [255, None])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("num_classes", [4, 19])
def test_accuracy_is_of_the_interpolated_logits(adapter, num_classes, align_corners, ignore_index):
    logits, _ = make_problem((2, num_classes, 6, 8))
    _, label = make_problem((3, num_classes, 12, 16), seed=1, labels=num_classes)
    label = label[:2]
    interpolated = interpolate(logits, align_corners)
    even = torch.arange(16, device=label.device) % 2 == 0
    label = interpolated.argmax(1).where(even & (label != 255), label)  # half of the valid ones are right
    correct = (interpolated.argmax(1) == label).sum().item()
    valid = (label != 255).sum().item() if ignore_index else label.numel()
    found = adapter.accuracy(logits, label, ignore_index, align_corners)
    assert found.tolist() == pytest.approx([100 * correct / valid], rel=1e-6)
    assert 25 < found < 75


def test_only_decode_heads_are_taken(build):
    for head in ("UpsampledCrossEntropyLoss", nn.Conv2d):
        with pytest.raises(TypeError, match="expected a BaseDecodeHead"):
            build(type="LowResolutionHead", head=head)


HEADS = {
    "FCNHead": {"num_convs": 1},
    "ASPPHead": {"dilations": (1, 2)},
    "EncHead": {"num_codes": 4, "in_index": (0, 1), "in_channels": (6, 6)},
    "DAHead": {"pam_channels": 4},
    "STDCHead": {"boundary_threshold": 0.1, "num_convs": 1},
}


# STDCHead makes its labels by thresholds on float32 sums, other ones than on float64 sums.
IN_FLOAT32 = [name for name in HEADS if name != "STDCHead"]


@needs_mmseg
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sampler", [None, {"type": "OHEMPixelSampler", "min_kept": 40}], ids=["", "OHEM"])
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float64) for name in HEADS] + [(name, torch.float32) for name in IN_FLOAT32]
)
def test_a_head_of_mmseg_trains_as_with_its_own_loss(build, name, sampler, align_corners, dtype):
    _, label, _ = problem()
    options = {"in_channels": 6, "channels": 6, "num_classes": 4, "dropout_ratio": 0, "align_corners": align_corners}
    options |= HEADS[name] | {"sampler": sampler}
    features = torch.randn(2, 6, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def train(dtype, loss, **config):
        torch.manual_seed(0)
        head = build(**config, **options, loss_decode={"type": loss, "avg_non_ignore": True}).to(dtype)
        leaf = features.clone().to(dtype).requires_grad_()
        losses = head.loss([leaf, leaf], samples_of(label), {})
        total = sum(value for key, value in losses.items() if "loss" in key)
        total.backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in head.parameters() if parameter.grad is not None)]
        accuracies = [value.float() for key, value in losses.items() if "acc_seg" in key]
        return total.detach(), torch.cat([gradient.flatten() for gradient in gradients]), accuracies

    ours = train(dtype, "UpsampledCrossEntropyLoss", type="LowResolutionHead", head=name)
    theirs = train(dtype, "CrossEntropyLoss", type=name)
    torch.testing.assert_close(ours[2], theirs[2])
    if dtype == torch.float64:
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-10, atol=1e-12)  # through the layers of the head
    else:
        oracles = train(torch.float64, "CrossEntropyLoss", type=name)
        for found, eager, oracle in zip(ours[:2], theirs[:2], oracles[:2], strict=True):
            assert_as_accurate(found, eager, oracle)


CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=["lal_triton.integrations.mmseg"])
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    backbone=dict(depth=18, norm_cfg=norm_cfg),
    decode_head=dict(
        type="LowResolutionHead", head="FCNHead", loss_decode=dict(type="LocallyAdaptiveLoss"),
        in_channels=512, channels=16, norm_cfg=norm_cfg),
    auxiliary_head=dict(
        type="LowResolutionHead", head="FCNHead", loss_decode=dict(type="UpsampledCrossEntropyLoss"),
        in_channels=256, channels=16, norm_cfg=norm_cfg),
    pretrained=None)
"""


@needs_mmseg
def test_a_config_of_mmseg_changes_by_its_heads(adapter, build, tmp_path):
    import mmengine
    import mmseg

    base = f"{mmseg.__path__[0]}/.mim/configs/_base_/models/fcn_r50-d8.py"
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(base=base))
    config = mmengine.Config.fromfile(file)
    model = build(**config.model | {"data_preprocessor": None})
    label = torch.randint(0, 19, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    losses = model.loss(torch.randn(2, 3, 64, 64), samples_of(label[:, 0]))
    assert set(losses) == {"decode.loss_lal", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses["decode.loss_lal"] + losses["aux.loss_ce"])
    total.backward()
    assert model.backbone.stem[0].weight.grad.abs().sum() > 0
