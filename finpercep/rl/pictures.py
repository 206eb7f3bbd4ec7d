"""Before, after and map: what training has done to the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.io.pictures import as_picture, overlay
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.scores import score

if TYPE_CHECKING:
    from PIL import Image as PILImage


@torch.no_grad()
def comparison(batch: Batch, before: Tensor, after: Tensor, reward: Reward) -> PILImage.Image:
    """One row for each image: bicubic, before, map over it, after, map over it, and the photo where there is one.

    Args:
        batch: the low-resolution images, on the reward's device.
        before, after: results (B,3,H,W) in [0, 1], there too.
        reward: whose maps are shown; a reward without maps leaves them out.
    """
    from PIL import Image

    bicubic = F.interpolate(batch.lr, before.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    maps = [score(reward, images, batch).map for images in (before, after)]
    rows = []
    for i in range(len(batch)):
        row = [as_picture(bicubic[i])]
        for images, faults in zip((before, after), maps, strict=True):
            row.append(as_picture(images[i]))
            if faults is not None:
                row.append(overlay(images[i], faults[i]))
        if batch.photo is not None:
            row.append(as_picture(batch.photo[i]))
        rows.append(row)
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * width, len(rows) * height))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet
