"""Model compression without a significant loss: head shrinking, pruning, distillation, quantization, and a search."""
