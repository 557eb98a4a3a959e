"""Networks: ResNet trunk, BatchNorm, RoIAlign, encoders with projection heads, momentum copies."""
