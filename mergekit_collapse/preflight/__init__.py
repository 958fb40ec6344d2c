"""What can be told of models from configurations, headers and tokenizer files."""
