"""Text to token ids and back, with the chat template of the model that is served."""
