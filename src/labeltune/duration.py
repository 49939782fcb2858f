"""How long something takes, in words."""


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{hours} h {minutes % 60:02} min"
