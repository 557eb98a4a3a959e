"""Pictures to judge a run by."""
