"""Weight masks: chosen by scores, with exact counts; the packed form; ladders of masked matrices."""
