"""How the built-in model was made: its tokenizer, its training, its folder. Nothing else imports this."""
