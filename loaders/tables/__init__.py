"""The table of a dataset: its samples in mapped columns, which the processes of a host share."""
