"""Pure tensor functions on one device."""
