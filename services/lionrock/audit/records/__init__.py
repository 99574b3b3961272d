"""Records: the payloads beside the log, from the moment that they are sealed to the moment that they are destroyed."""
