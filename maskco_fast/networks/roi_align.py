"""RoIAlign with a 1×1 output, as one batched matrix product.

Shapes: N images, K boxes per image, C channels, H and W cells of the conv5 map, S samples per side
of a box.
"""

import torch


def region_features(
    map_NCHW: torch.Tensor,
    boxes_NK4: torch.Tensor,
    *,
    stride: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """RoIAlign with a 1×1 output at scale 1/`stride`: (N, K, C), the map's mean over each box.

    `boxes_NK4`: float32 xyxy in image pixels, inside the image. The output is float32, or float64
    for a float64 map. Equals
    `torchvision.ops.roi_align(map, boxes, 1, 1/stride, sampling_ratio, aligned)`: its samples form
    a grid, so the mean of bilinear samples is `Wy·F·Wxᵀ` with one weight vector per axis.

    As one batched product over the cells it reads the channels-last map in place, its gradient is
    deterministic (torchvision's on CUDA adds atomically), and it needs no list of boxes and no
    host synchronisation.
    """
    _, _, height, width = map_NCHW.shape
    # Without autocast: box weights rounded to bfloat16 would move the box.
    with torch.autocast(map_NCHW.device.type, enabled=False):
        boxes_NK4 = boxes_NK4.float() / stride
        x1_NK, y1_NK, x2_NK, y2_NK = boxes_NK4.unbind(-1)
        weight_NKH = _axis_weights(y1_NK, y2_NK, height, sampling_ratio, aligned)
        weight_NKW = _axis_weights(x1_NK, x2_NK, width, sampling_ratio, aligned)
        weight_NKP = (weight_NKH.unsqueeze(-1) * weight_NKW.unsqueeze(-2)).flatten(-2)  # P = H·W
        dtype = torch.promote_types(map_NCHW.dtype, torch.float32)
        cells_NPC = map_NCHW.to(dtype).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.bmm(weight_NKP.to(dtype), cells_NPC)


def _axis_weights(
    start_NK: torch.Tensor, end_NK: torch.Tensor, cells: int, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """Return (N, K, cells): the weight of each cell of one axis in the mean over each box.

    `start_NK`, `end_NK`: the boxes' ends on that axis, in cells.
    """
    if aligned:  # cell centres lie at half coordinates
        start_NK = start_NK - 0.5
        end_NK = end_NK - 0.5
    length_NK = end_NK - start_NK
    if not aligned:
        length_NK = length_NK.clamp(min=1)
    if sampling_ratio > 0:
        most = sampling_ratio
        count_NK = torch.full_like(length_NK, sampling_ratio)
    else:
        most = cells  # a box inside the image spans at most all cells
        count_NK = length_NK.ceil()
    sample_S = torch.arange(most, device=start_NK.device, dtype=torch.float32)
    count_NK1 = count_NK.clamp(min=1).unsqueeze(-1)
    at_NKS = start_NK.unsqueeze(-1) + (sample_S + 0.5) * length_NK.unsqueeze(-1) / count_NK1
    # As in torchvision, samples more than one cell outside the map count as zeros.
    counted_NKS = (sample_S < count_NK.unsqueeze(-1)) & (at_NKS >= -1) & (at_NKS <= cells)
    cell_H = torch.arange(cells, device=start_NK.device, dtype=torch.float32)
    # Bilinear interpolation along one axis: a tent of width 2 around the sample.
    tent_NKSH = (1 - (at_NKS.clamp(0, cells - 1).unsqueeze(-1) - cell_H).abs()).clamp(min=0)
    return (tent_NKSH * counted_NKS.unsqueeze(-1)).sum(-2) / count_NK1
