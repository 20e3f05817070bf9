"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: a file, field, shape or setting. The message is one line that names it and says what was expected; the
    CLI prints it without a traceback."""
