"""The built-in model: how its data, tokenizer and weights are made, and how well it answers."""
