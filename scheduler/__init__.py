"""What must happen, in which order, where and at what cost: pure, without torch."""
