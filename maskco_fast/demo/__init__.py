"""The built-in demo set: labelled scenes drawn without a download."""
