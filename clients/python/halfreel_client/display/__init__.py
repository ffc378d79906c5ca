"""Shows a film in the making: on a terminal, as plain lines, or as JSON lines; it makes no call."""
