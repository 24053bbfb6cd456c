"""The leaderboard over many runs: one table, grouped by what may be compared, marked, with means over seeds."""
