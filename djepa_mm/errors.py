"""The two things that go wrong outside the program itself. No heavy imports."""


class UserError(ValueError):
    """A user's mistake: one line that names what is wrong and the fix. The command line prints it and exits with code 2."""


class BrokenItem(Exception):  # noqa: N818  (it is an event that training survives, not an error of the program)
    """One item of a corpus cannot be read. It is skipped, counted and named in the run's report."""
