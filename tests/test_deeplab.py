"""DeepLabV2: strides and dilations, frozen batch norm, upsampling, and where the backbone's weights come from."""

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("monai")
pytest.importorskip("transformers")

from safetensors.torch import save_file
from transformers import ResNetBackbone, ResNetConfig, ResNetForImageClassification, ResNetModel

from lal_triton import CrossEntropyLoss
from lal_triton.benchmarks.training import deeplab_voc
from lal_triton.benchmarks.training.deeplab_voc import DeepLabV2
from lal_triton.benchmarks.training.evaluation import predict
from lal_triton.benchmarks.training.loop import make_optimizer
from lal_triton.benchmarks.training.task import Recipe

NUM_CLASSES = 5


def make_config(depths=(1, 1, 1, 1), sizes=(16, 16, 32, 32)):
    return ResNetConfig(
        embedding_size=8, hidden_sizes=list(sizes), depths=list(depths), layer_type="bottleneck", num_labels=3
    )


def make_network(seed=0, **options):
    torch.manual_seed(seed)
    return DeepLabV2(NUM_CLASSES, **{"config": make_config(), **options})


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def stir(network):
    """Batch norm that is not the identity which it starts as."""
    for norm in batch_norms(network):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=0.1)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize(("size", "low"), [((321, 321), (41, 41)), ((65, 72), (9, 9)), ((64, 73), (8, 10))])
def test_the_output_stride_is_8(size, low):
    output = make_network()(torch.rand(1, 3, *size))
    assert output.logits.shape == (1, NUM_CLASSES, *low)
    assert output.features.shape == (1, make_network().num_features, *low)


def test_the_network_is_deeplab_with_resnet_101():
    with torch.device("meta"):
        network = DeepLabV2(21)
    assert sum(parameter.numel() for parameter in network.backbone.parameters()) == 42_500_160
    assert network.num_features == 2048
    for classifier, rate in zip(network.head, (6, 12, 18, 24), strict=True):
        assert classifier.weight.shape == (21, 2048, 3, 3)
        assert classifier.dilation == classifier.padding == (rate, rate)
    dilations = [
        [
            module.dilation[0]
            for module in stage.modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1
        ]
        for stage in network.backbone.encoder.stages
    ]
    assert dilations == [[1] * 3, [1] * 4, [1] + [2] * 22, [2] + [4] * 2]


def test_the_heads_weights_are_drawn_as_deeplabs():
    head = make_network(config=make_config(sizes=(16, 16, 32, 512))).head
    weights = torch.cat([classifier.weight.flatten() for classifier in head])
    error = 0.01 / (2 * weights.numel()) ** 0.5  # of the standard deviation of normal numbers
    assert weights.std().item() == pytest.approx(0.01, abs=5 * error)
    assert not any(classifier.bias.any() for classifier in head)


def test_logits_are_the_sum_of_the_four_classifiers():
    network = make_network()
    output = network(torch.rand(2, 3, 33, 41))
    summed = sum(
        F.conv2d(output.features, part.weight, part.bias, padding=rate, dilation=rate)
        for part, rate in zip(network.head, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(output.logits, summed)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (71, 90)])
def test_the_dilated_network_holds_the_strided_one(size):
    """At every 4th position, at the borders too: from there, the padding is that of the strided one."""
    config = make_config(depths=(1, 2, 3, 3))
    network = make_network(config=config).double()
    stir(network)
    strided = ResNetBackbone(config).double().eval()
    strided.load_state_dict(network.backbone.state_dict())
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = strided((images - network.mean) / network.std).feature_maps[-1]
    features = network(images).features
    assert features.shape[2:] != expected.shape[2:]
    torch.testing.assert_close(features[:, :, ::4, ::4], expected, rtol=1e-12, atol=1e-12)


def test_images_are_standardised_by_imagenets_mean():
    network = make_network()
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 33, 33)
    torch.testing.assert_close(network(grey).features, network.backbone(torch.zeros(1, 3, 33, 33)).feature_maps[-1])
    above = grey + torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(network(above).features, network.backbone(torch.ones(1, 3, 33, 33)).feature_maps[-1])


def test_batch_norm_is_frozen():
    network = make_network()
    stir(network)
    nn.Sequential(network).train()  # as what wraps it does
    assert network.training
    assert not any(norm.training for norm in batch_norms(network))
    before = {name: values.clone() for name, values in network.state_dict().items()}
    optimizer = make_optimizer(network, Recipe(learning_rate=0.01))
    target = torch.randint(NUM_CLASSES, (2, 33, 33))
    CrossEntropyLoss(align_corners=True)(network(torch.rand(2, 3, 33, 33)).logits, target).backward()
    optimizer.step()
    frozen = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in module.state_dict()
    } | {"mean", "std"}
    unchanged = {name for name, values in network.state_dict().items() if torch.equal(values, before[name])}
    assert unchanged == frozen


def test_the_head_learns_at_rates_of_its_own():
    body, head, biases = make_optimizer(make_network(head="deconv"), Recipe(learning_rate=0.5)).param_groups
    assert (body["lr"], head["lr"], biases["lr"]) == (0.5, 5, 10)
    assert [len(group["params"]) for group in (head, biases)] == [4, 4]
    assert (body["weight_decay"], head["weight_decay"], biases["weight_decay"]) == (5e-4, 5e-4, 0)


def test_the_deconvolution_starts_as_bilinear_interpolation():
    images = torch.rand(2, 3, 65, 73)
    low, full = (make_network(head=head)(images) for head in deeplab_voc.HEADS)
    assert full.logits.shape[2:] == (65, 73)
    torch.testing.assert_close(full.features, low.features)
    expected = F.interpolate(low.logits, (65, 73), mode="bilinear", align_corners=True)
    torch.testing.assert_close(full.logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", deeplab_voc.HEADS)
def test_labels_are_predicted_at_the_images_size(head):
    network = make_network(head=head).eval()
    image = torch.rand(3, 50, 67)
    padded = F.pad(image[None], (0, 6, 0, 7), mode="replicate")
    logits = F.interpolate(network(padded).logits, (57, 73), mode="bilinear", align_corners=True)
    assert torch.equal(predict(network, image), logits.argmax(1)[0, :50, :67])


def test_an_unknown_head_is_an_error():
    with pytest.raises(ValueError, match="head = 'nearest', expected one of bilinear, deconv"):
        make_network(head="nearest")


# ---- the backbone's weights


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("of", [ResNetModel, ResNetBackbone, ResNetForImageClassification])
def test_weights_come_from_a_file(tmp_path, suffix, of):
    model = of(make_config())
    stir(model)
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(model.state_dict(), path)
    assert_holds(make_network(backbone=str(path)), model)


def assert_holds(network, model):
    loaded = network.backbone.state_dict()
    expected = {name.removeprefix("resnet."): values for name, values in model.state_dict().items()}
    assert loaded.keys() == {name for name in expected if not name.startswith("classifier.")}
    assert all(torch.equal(values, expected[name]) for name, values in loaded.items())
    assert network.training
    assert not any(norm.training or norm.weight.requires_grad for norm in batch_norms(network.backbone))


def test_weights_come_from_a_folder_and_are_float32(tmp_path):
    model = ResNetForImageClassification(make_config()).half()
    model.save_pretrained(tmp_path)
    network = make_network(backbone=str(tmp_path))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert_holds(network, model.float())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"depths": (1, 1, 2, 1)},
            r"has the unknown tensor encoder\.stages\.2\.layers\.1\S* and 17 others; .* \[1, 1, 1, 1\]",
        ),
        ({"sizes": (16, 16, 32, 64)}, "has tensors of other sizes"),
    ],
)
def test_weights_of_another_resnet_are_an_error(tmp_path, saved, message):
    path = tmp_path / "other.pt"
    torch.save(ResNetModel(make_config(**saved)).state_dict(), path)
    with pytest.raises(ValueError, match=message) as error:
        make_network(backbone=str(path))
    assert str(path) in str(error.value)


def test_missing_weights_are_an_error(tmp_path):
    state = ResNetModel(make_config()).state_dict()
    del state["embedder.embedder.convolution.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"lacks the tensor embedder\.embedder\.convolution\.weight and 0 others"):
        make_network(backbone=str(tmp_path / "part.pt"))


@pytest.mark.parametrize("name", ["text.pt", "text.safetensors", "empty.pt"])
def test_a_file_that_holds_no_weights_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"" if name == "empty.pt" else b"this is no archive")
    with pytest.raises(ValueError, match=f"{name} is neither a safetensors file nor one that torch.save wrote"):
        make_network(backbone=str(path))


def test_a_file_without_a_state_is_an_error(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"nested\.pt holds no state_dict"):
        make_network(backbone=str(tmp_path / "nested.pt"))


@pytest.mark.parametrize("name", ["nobody/no-such-resnet", "no/such/file.pt"])
def test_a_hub_out_of_reach_is_an_error(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=f"backbone '{name}' is no file or folder.*such as microsoft/resnet-101"
    ):
        make_network(backbone=name)
