"""Networks: ResNet trunk, grouped BatchNorm, RoIAlign, heads and momentum copies."""
