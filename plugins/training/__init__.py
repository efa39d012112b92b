"""Fine-tuning with LoRA weights, and what it did; torch, trl, bitsandbytes and datasets are imported on use."""
