"""The one exception type for mistakes a user can mend."""


class UserError(Exception):
    """Bad input or configuration.

    The message is one clear sentence: what was wrong and what to do. Command-line
    programs print it without a traceback and exit with status 2.
    """
