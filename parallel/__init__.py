"""How tensors move between workers: the only home of torch.distributed."""
