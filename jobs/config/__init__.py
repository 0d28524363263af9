"""Configuration: the settings, the presets, command lines and YAML files."""
