"""The user's benchmark: how stacks are best packed into containers, and how many of them a device bears."""
