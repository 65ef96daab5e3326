"""What an error says."""


def line(caught):
    """The message, which is one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message
