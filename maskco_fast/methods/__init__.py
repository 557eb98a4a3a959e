"""Pre-training methods, one module each, and the contrasts that they share."""
