"""What goes wrong outside the program itself. No heavy imports."""


class UserError(ValueError):
    """A user's mistake, in one line that names what is wrong and the fix. The command line then exits with code 2."""

    told = False  # whether all processes know of it already


class BrokenItem(Exception):
    """One item of a corpus cannot be read. It is skipped, counted and named in the run's report."""


class Notice(UserWarning):
    """Something is done in another way than it was asked for, which the user should know; in one line."""
