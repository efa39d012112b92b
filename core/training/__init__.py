"""Fine-tuning with LoRA weights, and what it did; trl, bitsandbytes and datasets are imported on use."""
