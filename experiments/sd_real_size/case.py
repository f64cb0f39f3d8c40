"""What both programs sample."""

PROMPT = "a cat"
STEPS = 2
