"""The prompts that models are measured on, and their token ids."""
