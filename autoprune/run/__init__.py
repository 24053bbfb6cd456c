"""One run from settings to report: parts, checks, search, finals, measurement, outputs."""
