"""Leaderboard, pictures and the report of a run; rows are pandas frames with the columns of `rows.COLUMNS`."""
