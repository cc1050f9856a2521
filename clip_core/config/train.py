"""`train`: on what a training runs: no stage's params name it, for it decides no more than the last bits."""

from typing import Literal

from clip_core.config.section import Count, Section


class Train(Section):
    devices: Count | Literal["auto"]  # processes, one a device; auto: every GPU of this machine, or the CPU
    tensorboard: bool  # curves for it, too
    sharded: bool  # weights, gradients and moments are shared out among the devices (FSDP) instead of kept by each


ONE_DEVICE = Train(devices=1, sharded=False, tensorboard=False)
