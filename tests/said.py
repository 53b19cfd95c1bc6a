"""What tests of error messages share."""


def assert_says(text, *parts):
    """All parts, in this order."""
    position = 0
    for part in parts:
        position = text.find(part, position)
        assert position >= 0, f"{part!r} is missing, or comes too early, in: {text}"
        position += len(part)
