"""What `lal_triton.integrations.mmseg` imports of mmsegmentation, by its documented protocol, for where it is missing.

Registry: https://mmengine.readthedocs.io/en/latest/advanced_tutorials/registry.html
Heads: https://mmsegmentation.readthedocs.io/en/latest/api.html, `BaseDecodeHead`
"""

import sys
import types

import torch
from torch import nn


class Registry(dict):
    def register_module(self, name=None):
        def register(module):
            assert (name or module.__name__) not in self
            self[name or module.__name__] = module
            return module

        return register

    def build(self, config):
        options = dict(config)
        return self[options.pop("type")](**options)


class BaseDecodeHead(nn.Module):
    def __init__(
        self, in_channels, num_classes, loss_decode, ignore_index=255, sampler=None, align_corners=False, **options
    ):
        super().__init__()
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.sampler = sampler
        if isinstance(loss_decode, dict):
            self.loss_decode = MODELS.build(loss_decode)
        else:
            self.loss_decode = nn.ModuleList(MODELS.build(config) for config in loss_decode)
        self.conv_seg = nn.Conv2d(in_channels, num_classes, 1)

    def _stack_batch_gt(self, samples):
        return torch.stack([sample.gt_sem_seg.data for sample in samples])

    def loss(self, inputs, samples, train_cfg):
        return self.loss_by_feat(self.forward(inputs), samples)

    def loss_by_feat(self, seg_logits, samples):
        raise AssertionError("mmseg's own interpolates first")


class FCNHead(BaseDecodeHead):
    def forward(self, inputs):
        return self.conv_seg(inputs[-1])


MODELS = Registry(FCNHead=FCNHead)


def install():
    contents = {
        "mmseg": {},
        "mmseg.registry": {"MODELS": MODELS},
        "mmseg.models": {},
        "mmseg.models.decode_heads": {},
        "mmseg.models.decode_heads.decode_head": {"BaseDecodeHead": BaseDecodeHead},
        "mmseg.models.losses": {},
        "mmseg.models.losses.utils": {"get_class_weight": lambda weight: weight},
    }
    for name, attributes in contents.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
