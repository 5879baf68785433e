"""The one exception that lmn raises for what a caller can mend."""


class LmnError(ValueError):
    """Input that can't be measured: the message says what was wrong, what was got and what to do."""
