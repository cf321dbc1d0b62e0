"""Nothing of Megatron is called by these fakes; it only has to be there."""
