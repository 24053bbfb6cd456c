"""Leaderboard, pictures and report of a run; `rows` are frames with the columns of `rows.COLUMNS`."""
