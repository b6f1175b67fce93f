"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for, told in one line that says what is legal."""
